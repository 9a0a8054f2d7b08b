from __future__ import annotations

from typing import Any

import pytest

from reports.figures.lines import Points, complete_points, draw_line
from reports.figures.style import Style
from reports.stats import Estimate, estimate


def drawn_line(points: Points) -> Any:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    draw_line(axes, points, Style("#332288", "o", "-"), alpha=0.2)
    return axes


def over_seeds(*values: float) -> Estimate:
    result = estimate(values)
    assert result is not None
    return result


def test_a_line_joins_the_means_and_its_band_has_the_intervals_of_the_tables() -> None:
    first, second = [90.0, 80.0, 84.0], [70.0, 75.0, 60.0]
    axes = drawn_line([(1, first), (2, second)])
    estimates = [over_seeds(*first), over_seeds(*second)]
    assert axes.lines[0].get_xydata().tolist() == [[1, estimates[0].mean], [2, estimates[1].mean]]
    (band,) = axes.collections
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices.tolist()}
    assert corners == {
        (learnt, round(each.mean + sign * (each.half_width or 0.0), 6))
        for learnt, each in enumerate(estimates, start=1)
        for sign in (-1, 1)
    }


def test_a_single_point_has_a_bar() -> None:
    axes = drawn_line([(3, [90.0, 80.0])])
    half_width = over_seeds(90.0, 80.0).half_width or 0.0
    (bar,) = axes.containers
    (segment,) = bar[2][0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([85 - half_width, 85 + half_width])


def test_a_single_seed_has_no_interval() -> None:
    axes = drawn_line([(1, [90.0]), (2, [70.0])])
    assert axes.lines[0].get_xydata().tolist() == [[1, 90], [2, 70]]
    assert [path for band in axes.collections for path in band.get_paths()] == []


def test_a_task_without_a_value_of_every_seed_has_no_point() -> None:
    assert complete_points([[1.0, 2.0], [None, 2.0], [3.0, 4.0]]) == [(1, [1.0, 2.0]), (3, [3.0, 4.0])]
    assert complete_points([]) == []
