from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.record import Record
from reports.figures import by_block
from reports.groups import group
from tests.reports.figures.conftest import cells, diagnosed

Make = Callable[..., Record]


def panels_of(figure: Any) -> list[Any]:
    """The heat maps, without the colour bars inside them."""
    return [axes for axes in figure.axes if axes.get_title(loc="left")]


def titles(panels: list[Any]) -> list[str]:
    return [axes.get_title(loc="left") for axes in panels]


def bar_labels(panels: list[Any]) -> list[str]:
    return [axes.child_axes[0].get_xlabel() for axes in panels]


def scales(panels: list[Any]) -> list[tuple[float, float]]:
    return [axes.collections[0].get_clim() for axes in panels]


def printed(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def grid_positions(panels: list[Any]) -> list[tuple[int, int]]:
    """(line, column) of each panel, from 0, as a reader sees them."""
    corners = [(round(-axes.get_position().y1, 6), round(axes.get_position().x0, 6)) for axes in panels]
    tops, lefts = (sorted({corner[i] for corner in corners}) for i in (0, 1))
    return [(tops.index(top), lefts.index(left)) for top, left in corners]


# ---- by block and task -------------------------------------------------------------------------


def test_blocks_go_down_and_tasks_to_the_right() -> None:
    assert by_block([None, [1.0, 2.0], [3.0, 4.0]]) == [[None, 1.0, 3.0], [None, 2.0, 4.0]]


def test_numbers_and_tables_have_no_panel_by_block(make: Make, drawn: Any) -> None:
    tables = [[[1.0]], [[0.5, 0.5], [0.0, 1.0]]]
    (only,) = group([make(tasks=2, **diagnosed(share=[1.0, 0.5], never=[None, None], choices=tables))])
    assert drawn("diagnostics", only) is None


def test_each_method_and_diagnostic_has_a_panel_and_a_labelled_bar(make: Make, drawn: Any) -> None:
    gates = diagnosed(
        gate_own=[[0.2, 0.4], [0.6, 0.8]], subspace_size=[[5.0, 6.0], [7.0, 8.0]], share=[1.0, 1.0]
    )
    better = make("a", 0, skill=0.9, tasks=2, **gates)
    worse = make("b", 0, skill=0.5, tasks=2, **diagnosed(gate_own=[None, [0.1, 0.9]]))
    panels = panels_of(drawn("diagnostics", group([better, worse])[0]))
    assert titles(panels) == ["a:\ngate own", "b:\ngate own", "a:\nsubspace size"]
    assert bar_labels(panels) == ["gate own", "gate own", "subspace size"]
    assert cells(panels[1]) == [[None, 0.1], [None, 0.9]]
    assert cells(panels[2]) == [[5.0, 7.0], [6.0, 8.0]]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in panels} == {("after learning task", "block")}
    assert printed(panels[2]) == []


def test_a_diagnostic_has_one_scale_for_all_methods(make: Make, drawn: Any) -> None:
    first = make("a", 0, tasks=1, **diagnosed(gate=[[0.2, 0.4]], size=[[7.0, 7.0]]))
    second = make("b", 0, tasks=1, **diagnosed(gate=[[0.3, 0.9]]))
    figure = drawn("diagnostics", group([first, second])[0])
    assert scales(panels_of(figure)) == [(0.2, 0.9), (0.2, 0.9), (6.5, 7.5)]


def test_there_are_at_most_four_panels_in_a_line(make: Make, drawn: Any) -> None:
    records = [make(name, 0, tasks=1, **diagnosed(gate=[[0.2, 0.4]])) for name in "abcdef"]
    panels = panels_of(drawn("diagnostics", group(records)[0]))
    assert grid_positions(panels) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


# ---- tables ------------------------------------------------------------------------------------


def test_numbers_and_lists_have_no_panel_of_a_table(make: Make, drawn: Any) -> None:
    (only,) = group([make(tasks=2, **diagnosed(share=[1.0, 0.5], never=[None, None], gate=[[0.5], [0.5]]))])
    assert drawn("choices", only) is None


def test_a_panel_shows_the_last_table_with_tasks_downwards(make: Make, drawn: Any) -> None:
    tables = [[[1.0]], [[0.8, 0.2, 0.0], [0.1, 0.6, 0.3]], None]
    (only,) = group([make("a", 0, tasks=3, **diagnosed(prompt_choices=tables))])
    (axes,) = panels_of(drawn("choices", only))
    assert cells(axes) == tables[1]
    assert titles([axes]) == ["a, seed 0:\nprompt choices"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "prompt, component or expert",
        "task of the test images",
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert bar_labels([axes]) == ["prompt choices"]
    assert printed(axes) == [".80", ".20", "0", ".10", ".60", ".30"]


def test_every_table_has_a_separate_scale_from_zero(make: Make, drawn: Any) -> None:
    tables = diagnosed(choices=[[[0.2, 0.4]]], weights=[[[0.0, 0.0]]])
    others = diagnosed(choices=[[[0.9, 0.3]]], share=[1.0], gate=[[7.0]])
    records = [make("a", 0, skill=0.9, tasks=1, **tables), make("b", 0, skill=0.5, tasks=1, **others)]
    panels = panels_of(drawn("choices", group(records)[0]))
    assert titles(panels) == ["a, seed 0:\nchoices", "b, seed 0:\nchoices", "a, seed 0:\nweights"]
    assert scales(panels) == [(0.0, 0.4), (0.0, 0.9), (0.0, 1.0)]
    assert grid_positions(panels) == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(("lines", "columns", "count"), [(1, 10, 10), (10, 10, 100), (1, 11, 0), (11, 2, 0)])
def test_values_are_printed_where_they_can_be_read(
    lines: int, columns: int, count: int, make: Make, drawn: Any
) -> None:
    tables = [*[None] * (lines - 1), [[0.5] * columns] * lines]
    (only,) = group([make("a", 0, tasks=lines, **diagnosed(choices=tables))])
    (axes,) = panels_of(drawn("choices", only))
    assert printed(axes) == [".50"] * count
