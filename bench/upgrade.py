"""Records of schemas 4 and 5 in the layout of schema 6; what followed by a formula is left out.

Schema 5 differs from 4 by three entries of the manifest, which have defaults. Schema 6 has one cost entry per
experience, where the older ones have a list per quantity, and keeps samples without their summaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CURRENT = 6
OLDER = (4, 5)

#: What schema 5 has as lists in `cost`, and in its `parameters`, by the name that schema 6 has for it, too.
QUANTITIES = (
    "train_seconds",
    "prepare_seconds",
    "consolidate_seconds",
    "train_images",
    "eval_seconds",
    "energy_joules",
    "flops",
)
SIZES = ("trainable", "stored", "stored_bytes", "deployed", "deployed_bytes")
#: Parts of older records that are computed when they are needed.
DERIVED = ("accuracy_matrix", "metrics")


class UnknownSchemaError(ValueError):
    """The record has a schema that this version does not read."""


def to_current(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record file in the current layout; not validated.

    Raises:
        UnknownSchemaError: if its schema is none that this version reads.
        ValueError: if it is not laid out as its schema says.
    """
    schema = content.get("schema")
    if type(schema) is not int or schema not in (*OLDER, CURRENT):
        raise UnknownSchemaError(str(schema))
    if schema == CURRENT:
        return dict(content)
    try:
        return _from_older(content)
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"is not laid out as a record of schema {schema}") from None


def _from_older(content: Mapping[str, Any]) -> dict[str, Any]:
    upgraded = {name: value for name, value in content.items() if name not in DERIVED}
    cost = content.get("cost")
    return upgraded | {"schema": CURRENT, "cost": None if cost is None else _cost(_object(cost))}


def _object(value: Any) -> dict[str, Any]:
    """A copy of an object of JSON.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"an object is expected, got {type(value).__name__}")
    return dict(value)


def _cost(cost: dict[str, Any]) -> dict[str, Any]:
    lists = {name: cost.pop(name, None) for name in QUANTITIES}
    sizes = _object(cost.pop("parameters", None) or {})
    lists |= {name: sizes.pop(name, None) for name in SIZES}
    cost.pop("throughput", None)
    latency = cost.pop("latency", None)
    return (
        cost
        | sizes
        | {
            "experiences": _experiences(
                {name: values for name, values in lists.items() if values is not None}
            ),
            "latency": None if latency is None else [_latency(_object(entry)) for entry in latency],
        }
    )


def _experiences(lists: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Lists by quantity -> one entry per experience."""
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        raise ValueError(f"cost: its lists have different lengths: {', '.join(map(str, sorted(lengths)))}")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _latency(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("ratio", None)
    timings = {name: {"samples": entry[name]["samples"]} for name in ("model", "plain")}
    return entry | timings
