"""The base class of everything that is validated: settings, cells, records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

#: What a task brings: new classes, or the same classes in a new domain.
Scenario = Literal["class-incremental", "domain-incremental"]

#: Fields of the protocol that older records do not have -> the value that all cells had before. A field with
#: this value is not written, so that a cell and its record keep their identity when a field is added.
ADDED: Mapping[str, Any] = {
    "drop_last": False,
    "class_order": "seeded",
    "geometry": "square",
    "test_crop": None,
    "gelu": "backbone",
    "test_batches": "mixed",
}

#: As `ADDED`, for the fields of a cell.
ADDED_TO_CELLS: Mapping[str, Any] = {"scenario": "class-incremental", "domains": None}


def without_defaults(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that `defaults` does not have with the same value."""
    return {name: value for name, value in content.items() if name not in defaults or value != defaults[name]}


class FrozenModel(BaseModel):
    """An immutable pydantic model without undeclared fields, NaN or infinity; defaults are validated, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
