"""Hyper-parameters: frozen, validated, each with its meaning, its unit and where its value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from methods.errors import UsageError, describe_validation, plain_name, quote, unknown

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

DEEPEST = 32  # lists in lists
BITS = 63  # of an integer, beside its sign


def hyper(default: Any, meaning: str, *, source: str, unit: str = "", **bounds: Any) -> Any:
    """A field of a hyper-parameter dataclass. `bounds` are pydantic's, such as gt, le, min_length."""
    return Field(default, description=meaning, json_schema_extra={"source": source, "unit": unit}, **bounds)


@dataclass(frozen=True, config=STRICT)
class Hyper:
    """What every method has."""

    lr: float = hyper(1e-3, "learning rate of Adam", source="Adam's default, arXiv 1412.6980", gt=0)


def make_hyper(owner: str, cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Build the frozen dataclass `cls` from `values`; `owner` names it in messages.

    Raises:
        UsageError: for a field that does not exist, or a value of the wrong type or out of bounds.
    """
    fields = cls.__pydantic_fields__
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
    """Refuse what cannot be used, whatever it is meant for.

    Raises:
        UsageError: for a text that is not Unicode or has a NUL, an integer or a nesting without end.
    """
    if problem := unfit(value):
        raise UsageError(f"{plain_name(owner)}: {problem}, got {quote(value)}")


def unfit(value: object, bits: int = BITS, depth: int = 0) -> str | None:
    """What a value of any type would have to be to be read, compared and written down; None if it is."""
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


def as_plain(values: Any) -> dict[str, Any]:
    """A hyper-parameter dataclass as JSON-ready data."""
    plain: dict[str, Any] = TypeAdapter(type(values)).dump_python(values, mode="json")
    return plain
