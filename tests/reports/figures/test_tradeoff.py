from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.record import Record
from reports.figures.tradeoff import Point, TradeoffPanel, front_corners, pareto_front, tradeoff_panels
from reports.groups import Group, group
from reports.stats import Estimate
from reports.values import MEMORY
from tests.reports.conftest import measured
from tests.reports.figures.conftest import constant

Make = Callable[..., Record]

LATENCY = "latency / that of the plain ViT, batch 1"
RSS, CUDA = (f"peak training memory ({MEMORY[kind]}, MiB)" for kind in ("rss", "cuda"))


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1.0, 50.0)], [0]),
        ([(2.0, 90.0), (1.0, 50.0), (3.0, 80.0)], [1, 0]),
        ([(1.0, 50.0), (1.0, 60.0)], [1]),
        ([(2.0, 60.0), (1.0, 60.0)], [1]),
        ([(1.0, 60.0), (2.0, 70.0), (1.0, 60.0)], [0, 2, 1]),
        ([], []),
    ],
)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(points) == front


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_follows_its_definition(points: list[tuple[int, int]]) -> None:
    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)

    assert sorted(pareto_front([(float(x), float(y)) for x, y in points])) == [
        i for i in range(len(points)) if not beaten(i)
    ]


@pytest.fixture
def only(costly: list[Record]) -> Group:
    return group(costly)[0]


def test_a_point_is_the_mean_over_seeds_after_the_last_experience(only: Group, costly: list[Record]) -> None:
    latency, memory = tradeoff_panels(only)
    assert (latency.label, memory.label) == (LATENCY, RSS)
    costs = [record.cost for record in costly if record.method == "fast"]
    ratios = [at.ratio for c in costs for at in c.latency if (at.batch, at.experiences) == (1, 3)]  # type: ignore[union-attr]
    peaks = [c.peak_memory.training.above / 2**20 for c in costs]  # type: ignore[union-attr]
    for panel, values in ((latency, ratios), (memory, peaks)):
        point = next(point for point in panel.points if point.method == "fast")
        assert point.cost.mean == pytest.approx(fmean(values))
        assert point.cost.half_width == pytest.approx(12.7062 * abs(values[0] - values[1]) / 2, rel=1e-4)


def test_what_is_evaluated_at_the_end_only_is_a_reference(only: Group) -> None:
    for panel in tradeoff_panels(only):
        assert [point.method for point in panel.points] == ["fast", "slow"]
        assert [method for method, _ in panel.references] == ["joint"]


def test_memory_of_the_process_and_of_the_gpu_are_never_in_one_panel(make: Make) -> None:
    on_gpu = measured("b", 0, 3, 2.0)
    on_gpu["peak_memory"] |= {"kind": "cuda"}
    (only,) = group([make("a", cost=measured("a", 0, 3, 1.0)), make("b", cost=on_gpu)])
    panels = tradeoff_panels(only)
    assert {panel.label: sorted(point.method for point in panel.points) for panel in panels} == {
        LATENCY: ["a", "b"],
        CUDA: ["b"],
        RSS: ["a"],
    }


def test_a_method_without_the_cost_in_every_seed_has_no_point(make: Make) -> None:
    (only,) = group([make("a", 0, cost=measured("a", 0, 3, 1.0)), make("a", 1)])
    assert tradeoff_panels(only) == []


def test_the_good_corner_and_every_method_are_named(only: Group, drawn: Any) -> None:
    for axes in drawn("tradeoff", only).axes:
        assert axes.get_title(loc="left") == "↖ better"
        assert sorted(text.get_text() for text in axes.texts) == ["fast", "joint", "slow"]


def label_extents(axes: Any) -> dict[str, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    return {text.get_text(): text.get_window_extent(renderer) for text in axes.texts}


def leaders(axes: Any) -> list[Any]:
    return [line for line in axes.lines if line.get_linewidth() == 0.7]


def methods_at(make: Make, places: dict[str, tuple[float, int]]) -> Group:
    """Methods by name, each with its latency ratio and its accuracy in percent; a single seed."""
    return group(
        [
            make(name, cost=measured("a", 0, 3, ratio), **constant(percent))
            for name, (ratio, percent) in places.items()
        ]
    )[0]


def test_no_label_covers_a_marker_in_a_crowd_or_the_front(make: Make, drawn: Any) -> None:
    from matplotlib.transforms import Bbox

    crowd = {f"crowded-{i}{j}": (2.0 + 0.1 * i, 40 + 5 * j) for i in range(3) for j in range(3)}
    places = {"best": (1.0, 95), "worst": (4.0, 5)} | crowd
    axes = drawn("tradeoff", methods_at(make, places)).axes[0]
    half = 4.5 * axes.figure.dpi / 72
    points = {name: axes.transData.transform(place) for name, place in places.items()}
    markers = [Bbox([[x - half, y - half], [x + half, y + half]]) for x, y in points.values()]
    x, y = points["best"]
    front = Bbox([[x, y - 0.5], [axes.bbox.x1, y + 0.5]])
    for extent in label_extents(axes).values():
        assert not any(extent.overlaps(box) for box in (*markers, front))


def test_only_a_label_far_from_its_point_is_joined_to_it(make: Make, drawn: Any) -> None:
    assert leaders(drawn("tradeoff", methods_at(make, {"alone": (1.5, 50)})).axes[0]) == []
    crowd = {f"method-{i}": (1.5, 50) for i in range(12)}
    assert 0 < len(leaders(drawn("tradeoff", methods_at(make, crowd)).axes[0])) < 12


def test_the_front_rises_where_a_better_method_can_be_afforded() -> None:
    means = {"a": (1.0, 50.0), "beaten": (3.0, 40.0), "b": (2.0, 90.0)}
    points = [Point(name, Estimate(x, None, 1), Estimate(y, None, 1)) for name, (x, y) in means.items()]
    turns = front_corners(TradeoffPanel("cost", points, []), right=4.0)
    assert list(dict.fromkeys(turns)) == [(1.0, 50.0), (2.0, 50.0), (2.0, 90.0), (4.0, 90.0)]


def test_costs_far_apart_have_a_logarithmic_scale_with_plain_numbers(make: Make, drawn: Any) -> None:
    costs = {name: measured(name, 0, 3, 1.0) for name in "ab"}
    for name, mebibytes in (("a", 10), ("b", 1000)):
        costs[name]["peak_memory"]["training"] = {"peak": mebibytes * 2**20, "baseline": 0}
    figure = drawn("tradeoff", group([make(name, cost=cost) for name, cost in costs.items()])[0])
    latency, memory = figure.axes
    assert (latency.get_xscale(), memory.get_xscale()) == ("linear", "log")
    figure.draw_without_rendering()
    texts = [label.get_text() for label in memory.get_xticklabels()]
    assert {"10", "100", "1,000"} <= set(texts)
