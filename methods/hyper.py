"""Hyper-parameters: frozen, validated, each with its meaning, its unit and where its value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from methods.errors import UsageError, unknown

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


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
    for name in values:
        if name not in fields:
            raise unknown(f"option of {owner}", name, fields)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise UsageError("; ".join(_sentence(owner, fields, e) for e in error.errors())) from None


def _sentence(owner: str, fields: Mapping[str, Any], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else "value"
    meaning = fields[name].description if name in fields else ""
    about = f" ({meaning})" if meaning else ""
    return f"{owner}.{name}{about}: {error['msg'].lower()}, got {error['input']!r}"


def as_plain(values: Any) -> dict[str, Any]:
    """A hyper-parameter dataclass as JSON-ready data."""
    plain: dict[str, Any] = TypeAdapter(type(values)).dump_python(values, mode="json")
    return plain
