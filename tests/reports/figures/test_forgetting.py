from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest

from bench.record import Record
from reports.figures.forgetting import accuracy_lost
from reports.groups import Row, group
from tests.reports.figures.conftest import cells

Make = Callable[..., Record]

COUNTS = [100, 100, 100]


def row(*records: Record) -> Row:
    (only,) = group(records)
    return only.rows[0]


def test_what_is_lost_is_counted_from_the_best_before_the_last_task(make: Make) -> None:
    cell = make(correct=[[60, None, None], [80, 90, None], [50, 95, 70]], counts=COUNTS)
    assert accuracy_lost(row(cell)) == pytest.approx([30.0, -5.0])


def test_losses_are_means_over_seeds_and_make_up_the_metric(make: Make) -> None:
    cells = [make(seed=seed, skill=0.9, loss=0.15) for seed in range(3)]
    metric = fmean(100 * value for value in row(*cells).metric("forgetting") if value is not None)
    assert fmean(value for value in accuracy_lost(row(*cells)) if value is not None) == pytest.approx(metric)


def test_a_task_that_one_seed_did_not_evaluate_has_no_loss(make: Make) -> None:
    whole = make(seed=0, correct=[[60, None, None], [80, 90, None], [50, 80, 70]], counts=COUNTS)
    gap = make(seed=1, correct=[[60, None, None], [80, None, None], [50, 80, 70]], counts=COUNTS)
    assert accuracy_lost(row(whole, gap)) == [pytest.approx(30.0), None]


def test_joint_has_lost_nothing_and_no_line(make: Make, costly: list[Record], drawn: Any) -> None:
    assert accuracy_lost(row(make("joint", joint=True))) == []
    (only,) = group(costly)
    axes = drawn("forgetting", only).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fast", "slow"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    learning = [r for r in only.rows if not r.is_reference]
    assert cells(axes) == [pytest.approx(accuracy_lost(r)) for r in learning]


def test_the_mean_and_its_interval_stand_beside_the_line_of_the_method(make: Make, drawn: Any) -> None:
    (only,) = group([make(name, skill=skill, loss=0.1) for name, skill in (("a", 0.9), ("b", 0.8))])
    axes = drawn("forgetting", only).axes[0]
    beside = {
        text.get_position()[1]: text.get_text() for text in axes.texts if text.get_position()[0] == 1.03
    }
    means = [fmean(loss for loss in accuracy_lost(r) if loss is not None) for r in only.rows]
    assert beside == {-0.25: "mean"} | {i + 0.5: f"{mean:.1f}" for i, mean in enumerate(means)}


def test_the_scale_has_zero_and_ten_points_in_it(make: Make, drawn: Any) -> None:
    small = make(correct=[[60, None, None], [58, 70, None], [55, 68, 70]], counts=COUNTS)
    gain = make(correct=[[60, None, None], [80, 70, None], [95, 40, 70]], counts=COUNTS)
    scales = [drawn("forgetting", group([r])[0]).axes[0].collections[0].get_clim() for r in (small, gain)]
    assert scales == [(0.0, 10.0), (pytest.approx(-15.0), pytest.approx(30.0))]


def test_without_an_evaluation_before_the_last_task_there_is_no_figure(make: Make, drawn: Any) -> None:
    assert drawn("forgetting", group([make("joint", joint=True)])[0]) is None
