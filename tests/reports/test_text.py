from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.text import clean, code, escape, in_table, number, significant, slug, spreadsheet


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("image_size", "image_size"),
        ("_a_", r"\_a\_"),
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("**bold**\n# title", r"\*\*bold\*\* # title"),
        ("[link](url)", r"\[link\](url)"),
        ("back\\slash", r"back\\slash"),
        ("red\x1b[31m\u202e", r"red \[31m"),
        ("# title #", r"\# title \#"),
        ("- item", r"\- item"),
        ("12. item", r"12\. item"),
        ("---", r"\---"),
        ("-0.5 and 1.5", "-0.5 and 1.5"),
    ],
)
def test_foreign_text_is_inert(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text())
def test_no_active_character_is_left(text: str) -> None:
    shown = escape(text)
    assert "\n" not in shown
    assert not set("<>") & set(shown)
    bare = re.sub(r"\\.", "", shown)
    assert not set("\\`*[]|~$") & set(bare)


@given(st.text())
def test_a_code_span_closes_only_at_its_end(text: str) -> None:
    span = code(text)
    fence = re.match("`+", span)
    assert fence is not None
    inside = span[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inside)
    assert inside.strip() == clean(text)


@given(st.text())
def test_a_cell_never_splits_its_row(text: str) -> None:
    for shown in (escape(text), code(text)):
        assert not re.search(r"(?<!\\)\|", in_table(shown))


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(0.5, 2, "0.50"), (-0.001, 2, "0.00"), (-1.25, 1, "-1.2"), (85798.0, 0, "85,798")],
)
def test_numbers(value: float, digits: int, shown: str) -> None:
    assert number(value, digits) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.00"),
        (12.0, "12.0"),
        (0.98765, "0.988"),
        (9.996, "10.0"),
        (-0.2, "-0.200"),
        (123456.0, "123,000"),
        (0.000123456, "0.000123"),
        (0.0000123456, "1.23e-05"),
    ],
)
def test_three_significant_digits(value: float, shown: str) -> None:
    assert significant(value) == shown


def test_file_names_are_plain() -> None:
    assert slug("image-folder:path=../A b") == "image-folder-path-a-b"
    assert slug("///") == "unnamed"


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+SUM(A1)", "@sum", "\t=1", "\n=1", "\uff1d1", "=HYPERLINK(1)"]
)
def test_a_spreadsheet_finds_no_formula(text: str) -> None:
    assert spreadsheet(text) == f"'{clean(text)}"


@pytest.mark.parametrize(
    "text", ["-0.52 ± 0.10", "+1.5", "-1.2e-05", "-0.1 (-0.3\N{EN DASH}0.2)", "a=b", "l2p", "—", ""]
)
def test_numbers_and_names_stay_as_they_are(text: str) -> None:
    assert spreadsheet(text) == text
