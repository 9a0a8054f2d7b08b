from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.record import Record
from reports.figures import DRAWERS, styles_of, theme
from reports.groups import Group
from tests.reports.conftest import measured

Make = Callable[..., Record]


@pytest.fixture(scope="session")
def costly(make: Make) -> list[Record]:
    """Two methods and the joint reference, two seeds each, all costs measured; `fast` is best and first."""
    return [
        make(name, seed, skill=skill, joint=name == "joint", cost=measured(name, seed, 3, ratio, 0.1))
        for name, skill, ratio in (("joint", 1.0, 1.0), ("fast", 0.95, 1.2), ("slow", 0.7, 2.0))
        for seed in (0, 1)
    ]


@pytest.fixture
def drawn() -> Callable[[str, Group], Any]:
    """Draw one kind of figure of a group; None where the group has no data for it."""

    def draw(kind: str, group: Group) -> Any:
        with theme():
            return DRAWERS[kind](group, styles_of([group]))

    return draw


def cells(axes: Any) -> list[list[float | None]]:
    """The values of a heat map, None where it is blank."""
    values: list[list[float | None]] = axes.collections[0].get_array().tolist()
    return values


def diagnosed(**values: list[Any]) -> dict[str, Any]:
    """A field of a record: diagnostics by name, an entry per experience."""
    return {"diagnostics": {name: {"meaning": "How open it is.", "values": v} for name, v in values.items()}}


def constant(percent: int, tasks: int = 3) -> dict[str, Any]:
    """Fields of a record whose accuracy is the same on every task at all times."""
    correct = [[percent if j <= i else None for j in range(tasks)] for i in range(tasks)]
    return {"correct": correct, "counts": [100] * tasks}
