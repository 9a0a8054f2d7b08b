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
    learning = [r for r in only.rows if not r.last_only]
    assert cells(axes) == [pytest.approx(accuracy_lost(r)) for r in learning]


def test_without_an_evaluation_before_the_last_task_there_is_no_figure(make: Make, drawn: Any) -> None:
    assert drawn("forgetting", group([make("joint", joint=True)])[0]) is None
