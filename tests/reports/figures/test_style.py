from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.record import Record
from reports.figures import styles_of
from reports.groups import group
from tests.reports.conftest import measured
from tests.reports.figures.conftest import WRITERS

Make = Callable[..., Record]


def test_a_method_looks_the_same_on_every_benchmark_and_unlike_the_others(make: Make) -> None:
    names = [f"method-{i}" for i in range(20)]
    groups = group([make(name, 0, benchmark) for name in names for benchmark in ("one", "two")])
    styles = styles_of(groups)
    assert sorted(styles) == sorted(names)
    assert len(set(styles.values())) == len(names)
    assert styles == styles_of(list(reversed(groups)))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_figure_is_written_twice_with_the_same_bytes(
    kind: str, costly: list[Record], tmp_path: Path
) -> None:
    (only,) = group(costly)
    first, second = (WRITERS[kind](only, styles_of([only]), tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == [f"{only.stem}-{kind}.svg", f"{only.stem}-{kind}.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_to_draw_is_no_file(kind: str, make: Make, unfinished: Make, tmp_path: Path) -> None:
    failed = unfinished("a", 0, "failed", "It broke.")
    for lonely in (failed, make("a", tasks=1, cost=None)):
        (only,) = group([lonely])
        assert WRITERS[kind](only, styles_of([only]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["curves", "forgetting", "matrices", "growth"])
def test_a_single_task_has_nothing_to_follow(kind: str, make: Make, tmp_path: Path) -> None:
    (only,) = group([make("a", tasks=1, cost=measured("a", 0, 1, 1.0))])
    assert WRITERS[kind](only, styles_of([only]), tmp_path) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_names_are_not_read_as_formulas(kind: str, make: Make, tmp_path: Path) -> None:
    name = "$\\broken{$ a_b\nc"
    (only,) = group([make(name, cost=measured("a", 0, 3, 1.0))])
    paths = WRITERS[kind](only, styles_of([only]), tmp_path)
    assert sorted(path.suffix for path in paths) == [".png", ".svg"]


@pytest.mark.parametrize("kind", ["curves", "tradeoff", "growth"])
def test_a_method_has_one_colour_and_marker_in_every_figure(
    kind: str, costly: list[Record], drawn: Callable[..., Any]
) -> None:
    (only,) = group(costly)
    styles = styles_of([only])
    figure = drawn(kind, only)
    marked = {
        (line.get_color(), line.get_marker())
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() in {look.marker for look in styles.values()}
    }
    learning = [row.method for row in only.rows if not row.last_only or kind == "curves"]
    assert marked == {(styles[name].colour, styles[name].marker) for name in learning}


def test_boxes_have_the_colours_of_their_methods(costly: list[Record], drawn: Callable[..., Any]) -> None:
    from matplotlib.colors import to_hex

    (only,) = group(costly)
    bars = drawn("latency", only).axes[0].patches
    colours = [to_hex(bar.get_facecolor()).upper() for bar in bars]
    assert colours[:-1] == [styles_of([only])[row.method].colour for row in only.rows]
