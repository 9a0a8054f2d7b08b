from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.record import Record
from reports.figures import mean_matrix
from reports.groups import group

Make = Callable[..., Record]


def test_matrices_are_means_over_seeds(make: Make) -> None:
    first = make("a", 0, correct=[[50, None], [30, 100]], counts=[100, 200], tasks=2)
    second = make("a", 1, correct=[[70, None], [50, 60]], counts=[100, 200], tasks=2)
    (only,) = group([first, second])
    assert mean_matrix(only.rows[0]) == [[pytest.approx(60), None], [pytest.approx(40), pytest.approx(40)]]


def test_the_joint_reference_has_its_last_row_only(make: Make) -> None:
    (only,) = group([make("joint", joint=True)])
    *above, last = mean_matrix(only.rows[0])
    assert all(value is None for line in above for value in line)
    assert all(value is not None for value in last)


def test_there_are_three_in_a_line_on_one_scale(make: Make, drawn: Any) -> None:
    (only,) = group([make(name, skill=0.9 - 0.1 * i) for i, name in enumerate("abcd")])
    *panels, bar = drawn("matrices", only).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "b", "c", "d"]
    assert len({axes.collections[0].get_clim() for axes in panels}) == 1
    lefts = [round(axes.get_position().x0, 6) for axes in panels]
    assert lefts[3] == lefts[0] < lefts[1] < lefts[2]
    assert bar.get_xlabel() == "accuracy (%)"
    assert len({type(artist) for artist in bar.collections}) == len(bar.collections)


def test_only_the_outer_panels_are_numbered(make: Make, drawn: Any) -> None:
    (only,) = group([make(name, skill=0.9 - 0.1 * i) for i, name in enumerate("abcd")])
    *panels, _ = drawn("matrices", only).axes
    tasks = ["1", "2", "3"]
    lines = [[label.get_text() for label in axes.get_yticklabels()] for axes in panels]
    columns = [[label.get_text() for label in axes.get_xticklabels()] for axes in panels]
    assert lines == [tasks, [], [], tasks]
    assert columns == [[], tasks, tasks, tasks]
