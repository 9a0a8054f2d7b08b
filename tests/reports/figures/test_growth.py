from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest

from bench.record import Record
from reports.figures.growth import GrowthPanel, growth_panels
from reports.figures.layout import spans_wide
from reports.groups import group
from tests.reports.conftest import measured, with_costs

Make = Callable[..., Record]

TITLES = [
    "FLOPs of one image / plain ViT's",
    "latency, batch 1 / plain ViT's",
    "kept by the method (bytes)",
    "trainable parameters",
    "training of each task (s)",
]


def panels(*records: Record) -> dict[str, GrowthPanel]:
    (only,) = group(records)
    return {panel.cost.title: panel for panel in growth_panels(only.rows)}


def means(panel: GrowthPanel, method: str) -> list[tuple[int, float]]:
    return [(learnt, fmean(values)) for learnt, values in panel.lines[method]]


def test_every_quantity_has_a_panel_with_a_point_for_each_task(make: Make) -> None:
    by_title = panels(*(make("a", seed, cost=measured("a", seed, 3, 2.0, 0.5)) for seed in (0, 1)))
    assert list(by_title) == TITLES
    assert means(by_title[TITLES[0]], "a") == [(1, 2.0), (2, 2.5), (3, 3.0)]
    assert [learnt for learnt, _ in means(by_title[TITLES[1]], "a")] == [1, 3]
    assert means(by_title[TITLES[2]], "a") == [(1, 80_000), (2, 160_000), (3, 240_000)]
    assert means(by_title[TITLES[3]], "a") == [(1, 10_000), (2, 10_010), (3, 10_020)]
    assert [len(values) for _, values in by_title[TITLES[4]].lines["a"]] == [2, 2, 2]


def test_a_panel_without_data_is_left_out(make: Make) -> None:
    assert list(panels(make("a"))) == TITLES[3:]
    assert panels(make("a", cost=None)) == {}


def test_a_method_is_missing_where_one_of_its_seeds_was_not_measured(make: Make) -> None:
    by_title = panels(
        make("a", 0, cost=measured("a", 0, 3, 2.0)), make("a", 1), make("b", cost=measured("b", 0, 3, 1.0))
    )
    assert [sorted(by_title[title].lines) for title in TITLES] == [["b"]] * 3 + [["a", "b"]] * 2


def test_a_task_that_was_not_measured_has_no_point(make: Make) -> None:
    cost = with_costs(measured("a", 0, 3, 2.0), train_seconds=[1.0, None, 3.0])
    assert means(panels(make("a", cost=cost))[TITLES[4]], "a") == [(1, 1.0), (3, 3.0)]


def test_what_learns_all_tasks_at_once_is_left_out(costly: list[Record], drawn: Any) -> None:
    figure = drawn("growth", group(costly)[0])
    assert [axes.get_title(loc="left") for axes in figure.axes] == TITLES
    for axes in figure.axes:
        assert sorted(text.get_text() for text in axes.texts) == ["fast", "slow"]


@pytest.mark.parametrize(("bytes_", "scale"), [(100, "linear"), (31_000, "symlog")])
def test_a_wide_span_has_a_logarithmic_scale(make: Make, drawn: Any, bytes_: int, scale: str) -> None:
    costs = {name: measured(name, 0, 3, 1.0) for name in "ab"}
    for name, size in (("a", 1000), ("b", bytes_)):
        costs[name] = with_costs(costs[name], stored_bytes=[size] * 3)
    axes = drawn("growth", group([make(name, cost=cost) for name, cost in costs.items()])[0]).axes[2]
    assert axes.get_yscale() == scale
    assert axes.get_ylim()[0] == (0 if scale == "linear" else 1000)


def test_nothing_kept_stands_at_the_bottom_of_a_logarithmic_scale(make: Make, drawn: Any) -> None:
    cost = with_costs(measured("a", 0, 3, 1.0), stored_bytes=[0, 5_000, 5_000_000])
    axes = drawn("growth", group([make("a", cost=cost)])[0]).axes[2]
    assert axes.get_ylim()[0] == 0
    assert list(axes.get_yticks()) == [0, 10_000, 100_000, 1_000_000]


def test_zero_has_no_part_in_the_span() -> None:
    assert spans_wide([0.0, 1.0, 31.0])
    assert not spans_wide([0.0, 1.0, 30.0])
    assert not spans_wide([0.0])


def test_seconds_that_span_much_are_written_out(make: Make, drawn: Any) -> None:
    cost = with_costs(measured("a", 0, 3, 2.0), train_seconds=[0.2, 1.0, 20.0])
    axes = drawn("growth", group([make("a", cost=cost)])[0]).axes[4]
    axes.figure.canvas.draw()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "10"]
