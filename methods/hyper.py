"""Hyper-parameters: frozen, validated dataclasses whose fields have a meaning, a unit and a source."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TypedDict, TypeVar, Unpack, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from methods.errors import UsageError, describe_validation, plain_name, quote, unknown

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

DEEPEST = 32  # nesting of lists and tables
BITS = 63  # of an integer, beside its sign

T = TypeVar("T")
H = TypeVar("H")


class Bounds(TypedDict, total=False):
    """Limits of a hyper-parameter, as `pydantic.Field` takes them."""

    gt: float
    ge: float
    lt: float
    le: float
    multiple_of: float
    min_length: int
    max_length: int
    pattern: str


def hyper(default: T, meaning: str, *, source: str, unit: str = "", **bounds: Unpack[Bounds]) -> T:
    """A field of a hyper-parameter dataclass.

    Args:
        default: its default; the annotation of the field is its type.
        meaning: what it controls, for people.
        source: where the default comes from: a paper's section, a file of its code, a validation table.
        unit: of the value, where it has one.
        **bounds: legal values.
    """
    return Field(default, description=meaning, json_schema_extra={"source": source, "unit": unit}, **bounds)


@dataclass(frozen=True, config=STRICT)
class Hyper:
    """Base of hyper-parameters: every method that trains has a learning rate."""

    lr: float = hyper(1e-3, "learning rate of Adam", source="Adam's default, arXiv 1412.6980", gt=0)


def fields_of(cls: type) -> dict[str, FieldInfo]:
    """The fields of a pydantic dataclass, by name."""
    return cast("dict[str, FieldInfo]", cls.__pydantic_fields__)  # type: ignore[attr-defined]


def make_hyper(owner: str, cls: type[H], values: Mapping[str, object]) -> H:
    """Build the frozen pydantic dataclass `cls` from `values`; messages name it `owner`.

    Raises:
        UsageError: for a field that does not exist, or a value of the wrong type or out of bounds.
    """
    fields = fields_of(cls)
    for name, value in values.items():
        if name not in fields:
            raise unknown(f"option of {owner}", name, fields)
        check_fit(f"{owner}.{name}", value)
    try:
        options = TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        meanings = {name: field.description for name, field in fields.items()}
        raise UsageError(describe_validation(error, owner, meanings)) from None
    for name in values:
        check_fit(f"{owner}.{name}", getattr(options, name))  # a text may have been read as an integer
    return options


def check_fit(owner: str, value: object) -> None:
    """Refuse a value that cannot be used for any option; the message names it `owner`.

    Raises:
        UsageError: for a text that is not Unicode or contains a NUL, an integer of more than `BITS` bits, or
            nesting deeper than `DEEPEST`.
    """
    if problem := unfit(value):
        raise UsageError(f"{plain_name(owner)}: {problem}, got {quote(value)}")


def unfit(value: object, bits: int = BITS, depth: int = 0) -> str | None:
    """Why a value cannot be read, compared and stored, as a sentence on what is legal; None if it can."""
    if isinstance(value, str):
        broken = "\0" in value or any("\ud800" <= c <= "\udfff" for c in value)
        return "a text is made of Unicode characters other than NUL" if broken else None
    if isinstance(value, int):
        return f"an integer has at most {bits} bits" if value.bit_length() > bits else None
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return None
    if depth == DEEPEST:
        return f"lists and tables are nested at most {DEEPEST} deep"
    parts = chain(value, value.values()) if isinstance(value, Mapping) else iter(value)
    return next(filter(None, (unfit(part, bits, depth + 1) for part in parts)), None)


def as_plain(values: object) -> dict[str, object]:
    """A hyper-parameter dataclass as JSON-ready data, field by field."""
    plain: dict[str, object] = TypeAdapter(type(values)).dump_python(values, mode="json")
    return plain
