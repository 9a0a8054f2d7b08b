"""Final accuracy against what it costs: latency and memory, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING

from bench.record import Record
from reports.figures import style
from reports.figures.grid import Room, grid, spans_wide, widen
from reports.figures.labels import Box, Obstacle, along, around, place, short, text_width
from reports.figures.style import FAINT, GRID, Style, set_title
from reports.groups import Group, Row
from reports.stats import Estimate, estimate
from reports.tables import MEMORY, latency_ratio, scaled, training_memory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOM = Room(width=2.9, height=3.1, across=0.55, left=0.7, right=0.14, bottom=0.55, top=0.4)
LABEL_LENGTH = 22
FONT = 9.5

#: Points: half a marker; how thick a line counts that a label would cross; from what distance on a label is
#: led to its point by a line; a panel.
MARKER = 4.5
STROKE = 1.5
LED = 13.0
#: What a square point of a marker or of a line costs when a label covers it.
COVERED = 20.0
CROSSED = 2.5
AREA = Box(0.0, 0.0, 72 * ROOM.width, 72 * ROOM.height)


@dataclass(frozen=True)
class Point:
    """A method's cost and final accuracy (percent)."""

    method: str
    cost: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class Panel:
    """One kind of cost: the methods for which it is known, and the references that have no place on it."""

    label: str
    points: Sequence[Point]
    references: Sequence[tuple[str, Estimate]]


def write_tradeoff(group: Group, styles: dict[str, Style], folder: Path) -> list[Path]:
    """Accuracy against latency and against peak training memory, a panel each; empty without any cost."""
    panels = panels_of(group)
    if not panels:
        return []
    return style.saved(lambda: _figure(panels, styles), folder / f"{group.stem}-tradeoff")


def panels_of(group: Group) -> list[Panel]:
    """The panels that have points. Memory of the process and of the GPU are two things: a panel each."""
    references = [
        (row.method, found) for row in group.rows if row.last_only for found in [_accuracy(row)] if found
    ]
    panels = [Panel(label, _points(group, cost), references) for label, cost in COSTS.items()]
    return [panel for panel in panels if panel.points]


def _points(group: Group, cost: Callable[[Record], float | None]) -> list[Point]:
    """What is evaluated after the last task only is a reference, and no point."""
    found = [
        (row.method, estimate(map(cost, row.done)), _accuracy(row)) for row in group.rows if not row.last_only
    ]
    return [Point(method, x, y) for method, x, y in found if x and y]


def _accuracy(row: Row) -> Estimate | None:
    return estimate(scaled(record, "accuracy") for record in row.done)


COSTS: dict[str, Callable[[Record], float | None]] = {
    "latency / that of the plain ViT, batch 1": latency_ratio(1),
    f"peak training memory ({MEMORY['cuda']}, MiB)": training_memory("cuda"),
    f"peak training memory ({MEMORY['rss']}, MiB)": training_memory("rss"),
}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the (cost, gain) points that no other beats: none is as good in both, better in one.

    In the order of cost. Of equal points all are on the front.
    """
    ranked = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    for i in ranked:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


# ---- drawing -----------------------------------------------------------------------------------


def _figure(panels: Sequence[Panel], styles: dict[str, Style]) -> Figure:
    figure, places = grid(len(panels), 2, ROOM)
    for axes, panel in zip(places, panels, strict=True):
        _draw(axes, panel, styles)
    for axes in places[::2]:
        axes.set_ylabel("final accuracy (%)")
    return figure


def _draw(axes: Axes, panel: Panel, styles: dict[str, Style]) -> None:
    for point in panel.points:
        _draw_point(axes, point, styles[point.method])
    for method, accuracy in panel.references:
        axes.axhline(accuracy.mean, color=styles[method].colour, linestyle=(0, (5, 4)), linewidth=1.3)
    axes.set_xlabel(panel.label)
    set_title(axes, "↖ better")
    axes.grid(**GRID)
    _set_limits(axes, panel)
    steps = corners(panel, axes.get_xlim()[1])
    axes.plot(*zip(*steps, strict=True), color=FAINT, linewidth=1.2, zorder=1.8)
    _name(axes, panel, styles)


def _draw_point(axes: Axes, point: Point, look: Style) -> None:
    axes.errorbar(
        point.cost.mean,
        point.accuracy.mean,
        xerr=point.cost.half_width,
        yerr=point.accuracy.half_width,
        color=look.colour,
        marker=look.marker,
        markersize=2 * MARKER,
        markeredgecolor="white",
        markeredgewidth=0.5,
        ecolor=(look.colour, 0.6),
        elinewidth=0.9,
        zorder=3,
    )


def _set_limits(axes: Axes, panel: Panel) -> None:
    """Some air around the points, and no more of wide intervals than accuracies and costs can have."""
    costs = [point.cost.mean for point in panel.points]
    axes.margins(x=0.08, y=0.1)
    if spans_wide(costs):
        widen(axes)
    else:
        axes.set_xlim(left=max(axes.get_xlim()[0], 0.0))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.0), min(high, 102.0))


def corners(panel: Panel, right: float) -> list[tuple[float, float]]:
    """The corners of the front: for each cost, up to the right edge, the best accuracy to be had for it."""
    means = [(point.cost.mean, point.accuracy.mean) for point in panel.points]
    front = [means[i] for i in pareto_front(means)]
    return [corner for a, b in pairwise([*front, (right, front[-1][1])]) for corner in (a, (b[0], a[1]))]


# ---- names beside the points -------------------------------------------------------------------


def _name(axes: Axes, panel: Panel, styles: dict[str, Style]) -> None:
    """Each name where it covers nothing, with a thin line to its point where it stands apart."""
    names = [point.method for point in panel.points] + [method for method, _ in panel.references]
    labels = [short(name, LABEL_LENGTH) for name in names]
    sizes = [(text_width(label, FONT), 1.2 * FONT) for label in labels]
    anchors = [_at(axes, point.cost.mean, point.accuracy.mean) for point in panel.points]
    heights = [_at(axes, axes.get_xlim()[0], accuracy.mean)[1] for _, accuracy in panel.references]
    wishes = [around(x, y, *size, AREA) for (x, y), size in zip(anchors, sizes, strict=False)]
    wishes += [along(y, *size, AREA) for y, size in zip(heights, sizes[len(anchors) :], strict=True)]
    boxes = place(wishes, _obstacles(axes, panel))
    for label, box in zip(labels, boxes, strict=True):
        _write(axes, label, box)
    for name, anchor, box in zip(names, anchors, boxes, strict=False):
        _lead(axes, anchor, box, styles[name])


def _at(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Points from the lower left corner of the axes, whose limits are final."""
    across, up = (axes.transScale + axes.transLimits).transform((x, y))
    return float(across) * AREA.right, float(up) * AREA.top


def _obstacles(axes: Axes, panel: Panel) -> list[Obstacle]:
    """Markers above all, then what is drawn thinner."""
    found = []
    for point in panel.points:
        x, y = _at(axes, point.cost.mean, point.accuracy.mean)
        found.append(Obstacle(Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER), COVERED))
        found += [Obstacle(box, CROSSED) for box in _bars(axes, point)]
    for _, accuracy in panel.references:
        _, y = _at(axes, axes.get_xlim()[0], accuracy.mean)
        found.append(Obstacle(_thin((0.0, y), (AREA.right, y)), CROSSED))
    turns = [_at(axes, x, y) for x, y in corners(panel, axes.get_xlim()[1])]
    return found + [Obstacle(_thin(a, b), CROSSED) for a, b in pairwise(turns)]


def _thin(a: tuple[float, float], b: tuple[float, float]) -> Box:
    """What a line, level or upright, takes."""
    (left, right), (low, high) = sorted((a[0], b[0])), sorted((a[1], b[1]))
    half = STROKE / 2
    return Box(left - half, low - half, right + half, high + half)


def _bars(axes: Axes, point: Point) -> list[Box]:
    wide, tall = point.cost.half_width or 0.0, point.accuracy.half_width or 0.0
    x, y = point.cost.mean, point.accuracy.mean
    level = _at(axes, max(x - wide, axes.get_xlim()[0]), y), _at(axes, x + wide, y)
    upright = _at(axes, x, y - tall), _at(axes, x, y + tall)
    return [_thin(*level), _thin(*upright)]


def _write(axes: Axes, label: str, box: Box) -> None:
    from matplotlib.patheffects import withStroke

    middle = (box.bottom + box.top) / 2
    where = (box.left / AREA.right, middle / AREA.top)
    text = axes.text(*where, label, fontsize=FONT, transform=axes.transAxes, va="center_baseline", zorder=4)
    text.set_path_effects([withStroke(linewidth=2.0, foreground="white")])


def _lead(axes: Axes, anchor: tuple[float, float], box: Box, look: Style) -> None:
    x, y = anchor
    end_x, end_y = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
    if hypot(end_x - x, end_y - y) > LED:
        ends = [x / AREA.right, end_x / AREA.right], [y / AREA.top, end_y / AREA.top]
        axes.plot(*ends, transform=axes.transAxes, color=look.colour, linewidth=0.7, zorder=2)
