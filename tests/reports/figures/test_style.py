from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from bench.record import Record
from reports.figures import DRAWERS, render_figures, styles_of
from reports.groups import group
from tests.reports.conftest import measured
from tests.reports.figures.conftest import diagnosed

Make = Callable[..., Record]


def test_a_method_looks_the_same_on_every_benchmark_and_unlike_the_others(make: Make) -> None:
    names = [f"method-{i}" for i in range(20)]
    groups = group([make(name, 0, benchmark) for name in names for benchmark in ("one", "two")])
    styles = styles_of(groups)
    assert sorted(styles) == sorted(names)
    assert len(set(styles.values())) == len(names)
    assert styles == styles_of(list(reversed(groups)))


def test_every_figure_is_written_twice_with_the_same_bytes(make: Make, costly: list[Record]) -> None:
    details = diagnosed(gate=[[0.2, 0.4]] * 3, choices=[[[1.0]]] * 3)
    (only,) = group([*costly, make("telling", 0, **details), make("telling", 1, **details)])
    first, second = (render_figures(only, styles_of([only])) for _ in range(2))
    for kind in DRAWERS:
        assert list(first[kind]) == [f"{only.stem}-{kind}.svg", f"{only.stem}-{kind}.png"]
    assert first == second


def test_files_have_no_date_and_no_version(costly: list[Record]) -> None:
    (only,) = group(costly)
    vector, pixels = render_figures(only, styles_of([only]))["curves"].values()
    assert not re.search(rb"<dc:(date|creator)>", vector)
    assert b"Matplotlib version" not in pixels


def test_the_settings_of_the_user_change_nothing(costly: list[Record]) -> None:
    import seaborn as sns
    from matplotlib import rc_context

    (only,) = group(costly)
    plain = render_figures(only, styles_of([only]))
    with rc_context():
        sns.set_theme("poster", "darkgrid", font="serif", rc={"axes.titleweight": "bold"})
        themed = render_figures(only, styles_of([only]))
    assert plain == themed


def test_nothing_to_draw_is_no_file(make: Make, unfinished: Make) -> None:
    failed = unfinished("a", 0, "failed", "It broke.")
    for lonely in (failed, make("a", tasks=1, cost=None)):
        (only,) = group([lonely])
        assert render_figures(only, styles_of([only])) == {kind: {} for kind in DRAWERS}


@pytest.mark.parametrize("kind", ["curves", "forgetting", "matrices", "growth"])
def test_a_single_task_has_nothing_to_follow(kind: str, make: Make, drawn: Any) -> None:
    (only,) = group([make("a", tasks=1, cost=measured("a", 0, 1, 1.0))])
    assert drawn(kind, only) is None
    assert drawn("latency", only) is not None


def test_names_are_not_read_as_formulas(make: Make) -> None:
    name = "$\\broken{$ a_b\nc"
    details = diagnosed(**{name: [[0.2, 0.4]] * 3, "choices $": [[[1.0]]] * 3})
    (only,) = group([make(name, cost=measured("a", 0, 3, 1.0), **details)])
    files = render_figures(only, styles_of([only]))
    assert all([name[-4:] for name in files[kind]] == [".svg", ".png"] for kind in DRAWERS)


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
        if line.get_marker() in {style.marker for style in styles.values()}
    }
    learning = [row.method for row in only.rows if not row.is_reference or kind == "curves"]
    assert marked == {(styles[name].colour, styles[name].marker) for name in learning}


def test_boxes_have_the_colours_of_their_methods(costly: list[Record], drawn: Callable[..., Any]) -> None:
    from matplotlib.colors import to_hex

    (only,) = group(costly)
    bars = drawn("latency", only).axes[0].patches
    colours = [to_hex(bar.get_facecolor()).upper() for bar in bars]
    assert colours[:-1] == [styles_of([only])[row.method].colour for row in only.rows]
