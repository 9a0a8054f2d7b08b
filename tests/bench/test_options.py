"""Options as they are typed: quotes protect, and the type of a field decides how its text is read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.options import (
    TypedText,
    parse_assignment,
    parse_options,
    parse_value,
    read_options,
    split_list,
    takes_text,
)
from methods.errors import UsageError
from methods.hyper import fields_of, make_hyper


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Options:
    path: Path | None = None
    name: str = ""
    bounded: Annotated[str, Field(min_length=1)] = "x"
    gate: Literal["none", "2024-01-05", "8"] = "none"
    colour: Colour = Colour.RED
    rank: int = 1
    lr: float = 1.0
    flag: bool = False
    layers: list[int] = Field(default_factory=list)
    either: int | str = 0


def read(text: str) -> Any:
    values = read_options(dict(parse_options(text)), fields_of(Options))
    return make_hyper("owner", Options, values)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        (" a , ,b ", ["a", "b"]),
        ("f:path=a,b", ["f:path=a", "b"]),
        ('f:path="a,b",c', ['f:path="a,b"', "c"]),
        ("f:path='a,b',c", ["f:path='a,b'", "c"]),
        ('f:path= "a,b",c', ['f:path= "a,b"', "c"]),
        (r'f:path="a\",b",c', [r'f:path="a\",b"', "c"]),
        ("m:x=[0,[1,2]],c", ["m:x=[0,[1,2]]", "c"]),
        ("f:path=bob's,c's", ["f:path=bob's", "c's"]),
        ("f:path='bob,c", ["f:path='bob", "c"]),
        ("f:path=a[1],c", ["f:path=a[1]", "c"]),
        ("f:path=[a,c", ["f:path=[a", "c"]),
    ],
)
def test_quotes_and_lists_protect_commas(text, parts):
    assert split_list(text) == parts


@pytest.mark.parametrize(
    "name",
    ["2024-01-05", "2024-01-05 10:00:00", "8", "1e-3", "true", "007", "[1]", "a+b", "a,b", "x=1", "{}"],
)
@pytest.mark.parametrize("field", ["path", "name", "bounded"])
def test_a_text_is_read_as_it_stands(field, name):
    assert str(getattr(read(f"{field}='{name}'"), field)) == name
    if "+" not in name:
        assert str(getattr(read(f"{field}={name}"), field)) == name


def test_a_choice_of_texts_is_a_text():
    assert read("gate=2024-01-05").gate == "2024-01-05"
    assert read("gate=8").gate == "8"
    assert read('colour="red"').colour is Colour.RED


def test_other_fields_get_what_the_text_is_in_toml():
    options = read('rank=8+lr="1e+3"+flag=true+layers=[0, 1]+either=7')
    assert options == Options(rank=8, lr=1000.0, flag=True, layers=[0, 1], either=7)
    assert read("either=a").either == "a"


@pytest.mark.parametrize("text", ['path="C:\\data"', 'path="a', "name='a", "name='it's'"])
def test_quotes_that_are_none_are_refused_with_what_is_legal(text):
    with pytest.raises(UsageError, match=r"a quoted value ends with .* in single quotes once"):
        read(text)


def test_a_value_that_was_cut_at_a_plus_is_explained():
    with pytest.raises(UsageError, match=r"cannot read 'b'; .* quotes keep them together: path=\"a\+b\""):
        parse_options("path=a+b")


def test_a_date_of_a_config_file_is_the_name_it_looks_like():
    from datetime import date

    assert read_options({"path": date(2024, 1, 5)}, fields_of(Options)) == {"path": "2024-01-05"}


def test_a_field_that_does_not_exist_is_left_to_the_one_who_refuses_it():
    assert read_options({"other": TypedText("8")}, fields_of(Options)) == {"other": "8"}


def test_values_are_toml_or_text():
    assert parse_value("none") == "none"
    assert parse_value("'8'") == "8"
    assert parse_value("8") == 8


def test_an_assignment_is_cut_at_its_first_sign():
    assert parse_assignment(" rank = a=b ") == ("rank", "a=b")


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [(str, True), (Path, True), (Path | None, True), (int, False), (int | str, False), (Any, False)],
)
def test_which_types_take_text(annotation, expected):
    assert takes_text(annotation) == expected
