from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.record import Record
from reports import figures
from reports.figures import style
from reports.groups import Group
from tests.reports.conftest import measured

Make = Callable[..., Record]

#: Every figure that is drawn of results and costs; each takes a group, styles and a folder.
WRITERS: dict[str, Callable[..., list[Path]]] = {
    "curves": figures.write_curves,
    "tradeoff": figures.write_tradeoff,
    "forgetting": lambda group, styles, folder: figures.write_forgetting(group, folder),
    "matrices": lambda group, styles, folder: figures.write_matrices(group, folder),
    "growth": figures.write_growth,
    "latency": figures.write_latency,
}


@pytest.fixture(scope="session")
def costly(make: Make) -> list[Record]:
    """Two methods and the joint reference, two seeds each, all costs measured; `fast` is best and first."""
    return [
        make(name, seed, skill=skill, joint=name == "joint", cost=measured(name, seed, 3, ratio, 0.1))
        for name, skill, ratio in (("joint", 1.0, 1.0), ("fast", 0.95, 1.2), ("slow", 0.7, 2.0))
        for seed in (0, 1)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, Group], Any]:
    """Draw one figure of a group, and give it instead of its files; None where there is none."""

    def draw(kind: str, group: Group) -> Any:
        kept: list[Any] = [None]
        monkeypatch.setattr(style, "saved", lambda make_figure, stem: kept.append(make_figure()))
        WRITERS[kind](group, figures.styles_of([group]), tmp_path)
        return kept[-1]

    return draw
