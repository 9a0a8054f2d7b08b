from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from bench.record import Record
from reports.figures.latency import PLAIN, latency_boxes
from reports.groups import Group, group
from tests.reports.conftest import measured

Make = Callable[..., Record]


@pytest.fixture
def only(costly: list[Record]) -> Group:
    return group(costly)[0]


def test_methods_are_in_the_order_of_the_table_and_the_plain_vit_is_last(only: Group) -> None:
    assert [box.method for box in latency_boxes(only, 1)] == ["joint", "fast", "slow", PLAIN]


def test_percentiles_are_of_all_seeds_together_in_milliseconds(make: Make) -> None:
    cells = []
    for seed, start in ((0, 0), (1, 50)):
        cost = deepcopy(measured("a", seed, 1, 1.0))
        for latency in cost["latency"]:
            seconds = [(start + i) / 1000 for i in range(1, 51)]
            latency |= {"rounds": 1, "model": {"samples": seconds}}
            latency["plain"] = latency["model"]
        cells.append(make("a", seed, tasks=1, cost=cost))
    box, plain = latency_boxes(group(cells)[0], 1)
    expected = [1 + 0.99 * p for p in (5, 25, 50, 75, 95, 99)]
    assert [box.p5, box.p25, box.median, box.p75, box.p95, box.p99] == pytest.approx(expected)
    assert plain.median == pytest.approx(box.median)


def test_the_smallest_and_the_largest_batch_have_a_panel_each(only: Group, drawn: Any) -> None:
    left, right = drawn("latency", only).axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["batch 1", "batch 32"]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["joint", "fast", "slow", PLAIN]
    low, high = left.get_ylim()
    assert low > high
    dashed = next(line for line in left.lines if line.get_linestyle() == "--" or line.is_dashed())
    assert dashed.get_xdata()[0] == pytest.approx(latency_boxes(only, 1)[-1].median)


def test_what_was_not_timed_has_no_box(make: Make, drawn: Any) -> None:
    (only,) = group([make("a", cost=measured("a", 0, 3, 1.0)), make("b")])
    assert [box.method for box in latency_boxes(only, 1)] == ["a", PLAIN]
    assert latency_boxes(only, 7) == []
    assert drawn("latency", group([make("b")])[0]) is None
