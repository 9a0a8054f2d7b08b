"""Final accuracy against latency and memory, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from typing import TYPE_CHECKING

from bench.record import Record
from reports.figures.labels import (
    Box,
    Obstacle,
    along_line,
    around_point,
    place_labels,
    shorten,
    text_width,
)
from reports.figures.layout import Layout, spans_wide, subplots, use_log_x
from reports.figures.style import FAINT, Style, Styles, set_title
from reports.groups import Group, Row
from reports.stats import Estimate, estimate
from reports.values import MEMORY, latency_ratio, scaled, training_memory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYOUT = Layout(width=2.9, height=3.1, across=0.55, left=0.7, right=0.14, bottom=0.55, top=0.4)
LABEL_LENGTH = 22
FONT = 9.5

#: Points: half a marker; the thickness of a line as an obstacle; the distance of a label from its point above
#: which a line joins the two; a panel.
MARKER = 4.5
STROKE = 1.5
LEADER_DISTANCE = 13.0
AREA = Box(0.0, 0.0, 72 * LAYOUT.width, 72 * LAYOUT.height)

#: The cost of each square point of a marker or of a line that a label covers.
MARKER_COST = 20.0
LINE_COST = 2.5


@dataclass(frozen=True)
class Point:
    """A method's cost and final accuracy (percent)."""

    method: str
    cost: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class TradeoffPanel:
    """One kind of cost: the methods for which it is known, and the references, shown by accuracy alone."""

    label: str
    points: Sequence[Point]
    references: Sequence[tuple[str, Estimate]]


def draw_tradeoff(group: Group, styles: Styles) -> Figure | None:
    """Accuracy against latency and against peak training memory, a panel each; None without any cost."""
    panels = tradeoff_panels(group)
    return _figure(panels, styles) if panels else None


def tradeoff_panels(group: Group) -> list[TradeoffPanel]:
    """The panels that have points. Memory of the process and of the GPU have separate panels."""
    accuracies = [(row.method, _accuracy(row)) for row in group.rows if row.is_reference]
    references = [(method, accuracy) for method, accuracy in accuracies if accuracy]
    panels = [TradeoffPanel(label, _points(group, cost), references) for label, cost in COSTS.items()]
    return [panel for panel in panels if panel.points]


def _points(group: Group, cost: Callable[[Record], float | None]) -> list[Point]:
    """A point per method; a method evaluated after the last task only is a reference instead."""
    means = [
        (row.method, estimate(map(cost, row.done)), _accuracy(row))
        for row in group.rows
        if not (row.is_reference or row.is_upper_bound)
    ]
    return [Point(method, x, y) for method, x, y in means if x and y]


def _accuracy(row: Row) -> Estimate | None:
    return estimate(scaled(record, "accuracy") for record in row.done)


COSTS: dict[str, Callable[[Record], float | None]] = {
    "latency / that of the plain ViT, batch 1": latency_ratio(1),
    f"peak training memory ({MEMORY['cuda']}, MiB)": training_memory("cuda"),
    f"peak training memory ({MEMORY['rss']}, MiB)": training_memory("rss"),
}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the (cost, gain) points not dominated by another, in the order of cost.

    A point dominates another if it is at least as good in both and better in one. Of equal points all are on
    the front.
    """
    ranked = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    for i in ranked:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


# ---- drawing -----------------------------------------------------------------------------------


def _figure(panels: Sequence[TradeoffPanel], styles: Styles) -> Figure:
    figure, axes_of_panels = subplots(len(panels), 2, LAYOUT)
    for axes, panel in zip(axes_of_panels, panels, strict=True):
        _draw(axes, panel, styles)
    for axes in axes_of_panels[::2]:
        axes.set_ylabel("final accuracy (%)")
    return figure


def _draw(axes: Axes, panel: TradeoffPanel, styles: Styles) -> None:
    for point in panel.points:
        _draw_point(axes, point, styles[point.method])
    for method, accuracy in panel.references:
        axes.axhline(accuracy.mean, color=styles[method].colour, linestyle=(0, (5, 4)), linewidth=1.3)
    axes.set_xlabel(panel.label)
    set_title(axes, "↖ better")
    axes.grid()
    _set_limits(axes, panel)
    corners = front_corners(panel, axes.get_xlim()[1])
    axes.plot(*zip(*corners, strict=True), color=FAINT, linewidth=1.2, zorder=1.8)
    _label_points(axes, panel, styles)


def _draw_point(axes: Axes, point: Point, style: Style) -> None:
    axes.errorbar(
        point.cost.mean,
        point.accuracy.mean,
        xerr=point.cost.half_width,
        yerr=point.accuracy.half_width,
        color=style.colour,
        marker=style.marker,
        markersize=2 * MARKER,
        markeredgecolor="white",
        markeredgewidth=0.5,
        ecolor=(style.colour, 0.6),
        elinewidth=0.9,
        zorder=3,
    )


def _set_limits(axes: Axes, panel: TradeoffPanel) -> None:
    """Some air around the points; wide intervals are cut at the values that accuracies and costs can have."""
    costs = [point.cost.mean for point in panel.points]
    axes.margins(x=0.08, y=0.1)
    if spans_wide(costs):
        use_log_x(axes)
    else:
        axes.set_xlim(left=max(axes.get_xlim()[0], 0.0))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.0), min(high, 102.0))


def front_corners(panel: TradeoffPanel, right: float) -> list[tuple[float, float]]:
    """The corners of the front: for each cost, up to the right edge, the best accuracy at that cost."""
    means = [(point.cost.mean, point.accuracy.mean) for point in panel.points]
    front = [means[i] for i in pareto_front(means)]
    return [corner for a, b in pairwise([*front, (right, front[-1][1])]) for corner in (a, (b[0], a[1]))]


# ---- labels beside the points ------------------------------------------------------------------


def _label_points(axes: Axes, panel: TradeoffPanel, styles: Styles) -> None:
    """The name of each method where it covers nothing, with a thin line to its point if it is far away."""
    names = [point.method for point in panel.points] + [method for method, _ in panel.references]
    labels = [shorten(name, LABEL_LENGTH) for name in names]
    sizes = [(text_width(label, FONT), 1.2 * FONT) for label in labels]
    anchors = [_position(axes, point.cost.mean, point.accuracy.mean) for point in panel.points]
    heights = [_position(axes, axes.get_xlim()[0], accuracy.mean)[1] for _, accuracy in panel.references]
    candidates = [around_point(x, y, *size, AREA) for (x, y), size in zip(anchors, sizes, strict=False)]
    candidates += [along_line(y, *size, AREA) for y, size in zip(heights, sizes[len(anchors) :], strict=True)]
    boxes = place_labels(candidates, _obstacles(axes, panel))
    for label, box in zip(labels, boxes, strict=True):
        _write_label(axes, label, box)
    for name, anchor, box in zip(names, anchors, boxes, strict=False):
        _draw_leader(axes, anchor, box, styles[name])


def _position(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Points from the lower left corner of the axes, whose limits are final."""
    across, up = (axes.transScale + axes.transLimits).transform((x, y))
    return float(across) * AREA.right, float(up) * AREA.top


def _obstacles(axes: Axes, panel: TradeoffPanel) -> list[Obstacle]:
    """Markers, intervals, reference lines and the front."""
    anchors = [_position(axes, point.cost.mean, point.accuracy.mean) for point in panel.points]
    heights = [_position(axes, axes.get_xlim()[0], accuracy.mean)[1] for _, accuracy in panel.references]
    corners = [_position(axes, x, y) for x, y in front_corners(panel, axes.get_xlim()[1])]
    markers = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in anchors]
    lines = [bar for point in panel.points for bar in _bars(axes, point)]
    lines += [_stroke((0.0, y), (AREA.right, y)) for y in heights]
    lines += [_stroke(start, end) for start, end in pairwise(corners)]
    return [Obstacle(box, MARKER_COST) for box in markers] + [Obstacle(box, LINE_COST) for box in lines]


def _stroke(start: tuple[float, float], end: tuple[float, float]) -> Box:
    """The room of a horizontal or vertical line."""
    (left, right), (low, high) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    half = STROKE / 2
    return Box(left - half, low - half, right + half, high + half)


def _bars(axes: Axes, point: Point) -> list[Box]:
    """The room of a point's two intervals."""
    width, height = point.cost.half_width or 0.0, point.accuracy.half_width or 0.0
    x, y = point.cost.mean, point.accuracy.mean
    horizontal = _position(axes, max(x - width, axes.get_xlim()[0]), y), _position(axes, x + width, y)
    vertical = _position(axes, x, y - height), _position(axes, x, y + height)
    return [_stroke(*horizontal), _stroke(*vertical)]


def _write_label(axes: Axes, label: str, box: Box) -> None:
    from matplotlib.patheffects import withStroke

    middle = (box.bottom + box.top) / 2
    position = (box.left / AREA.right, middle / AREA.top)
    text = axes.text(
        *position, label, fontsize=FONT, transform=axes.transAxes, va="center_baseline", zorder=4
    )
    text.set_path_effects([withStroke(linewidth=2.0, foreground="white")])


def _draw_leader(axes: Axes, anchor: tuple[float, float], box: Box, style: Style) -> None:
    x, y = anchor
    end_x, end_y = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
    if hypot(end_x - x, end_y - y) > LEADER_DISTANCE:
        ends = [x / AREA.right, end_x / AREA.right], [y / AREA.top, end_y / AREA.top]
        axes.plot(*ends, transform=axes.transAxes, color=style.colour, linewidth=0.7, zorder=2)
