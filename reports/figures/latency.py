"""The distribution of inference times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from bench.costs import Latency, percentiles
from reports.figures.labels import shorten
from reports.figures.layout import Layout, spans_wide, subplots, use_log_x
from reports.figures.style import FAINT, INK, Styles, set_title
from reports.groups import Group, Row
from reports.values import last_latency, outer_batch_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = "plain timm ViT"
LABEL_LENGTH = 22
LINE_HEIGHT = 0.3
LAYOUT = Layout(width=2.35, height=0.0, across=0.2, left=2.1, right=0.15, bottom=0.55, top=0.35)


@dataclass(frozen=True)
class LatencyBox:
    """The percentiles of one model's times that are drawn, in milliseconds."""

    method: str
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    p99: float


def draw_latency(group: Group, styles: Styles) -> Figure | None:
    """The time of a call after the last task, all seeds together: at batch 1, and at the largest batch.

    None where nothing was timed.
    """
    panels = {size: boxes for size in outer_batch_sizes(group.done) if (boxes := latency_boxes(group, size))}
    return _figure(panels, styles) if panels else None


def latency_boxes(group: Group, batch: int) -> list[LatencyBox]:
    """A box for each timed method, in the order of the table, and that of the plain ViT at the end."""
    timed = {row.method: latencies for row in group.rows if (latencies := _latencies(row, batch))}
    plain = [at.plain.samples for latencies in timed.values() for at in latencies]
    boxes = [_box(method, [at.model.samples for at in latencies]) for method, latencies in timed.items()]
    return [*boxes, _box(PLAIN, plain)] if boxes else []


def _latencies(row: Row, batch: int) -> list[Latency]:
    return [latency for record in row.done if (latency := last_latency(record, batch))]


def _box(method: str, samples: Sequence[Sequence[float]]) -> LatencyBox:
    cuts = percentiles([1000 * seconds for seconds in chain(*samples)])
    return LatencyBox(method, *(cuts[p - 1] for p in (5, 25, 50, 75, 95, 99)))


# ---- drawing -----------------------------------------------------------------------------------


def _figure(boxes_by_batch: Mapping[int, Sequence[LatencyBox]], styles: Styles) -> Figure:
    lines = max(map(len, boxes_by_batch.values()))
    count = len(boxes_by_batch)
    figure, panels = subplots(count, count, replace(LAYOUT, height=LINE_HEIGHT * lines))
    for axes, (batch, boxes) in zip(panels, boxes_by_batch.items(), strict=True):
        _draw(axes, boxes, styles)
        set_title(axes, f"batch {batch}")
        axes.set_xlabel("one call (ms)")
    for axes in panels[1:]:
        axes.tick_params(labelleft=False)
    return figure


def _draw(axes: Axes, boxes: Sequence[LatencyBox], styles: Styles) -> None:
    """As `seaborn.boxplot`, whose whiskers would end at a sample and not at the percentile."""
    colours = [styles[box.method].colour if box.method in styles else FAINT for box in boxes]
    lines = range(len(boxes))
    axes.axvline(boxes[-1].median, color=FAINT, linestyle=(0, (5, 4)), linewidth=1.2)
    axes.hlines(lines, [b.p5 for b in boxes], [b.p95 for b in boxes], colours, linewidth=1.4)
    widths = [b.p75 - b.p25 for b in boxes]
    axes.barh(lines, widths, 0.56, [b.p25 for b in boxes], color=colours, linewidth=0)
    axes.vlines([b.median for b in boxes], *_around(lines), color="white", linewidth=2.6)
    axes.vlines([b.median for b in boxes], *_around(lines), color=INK, linewidth=1.4)
    for line, box, colour in zip(lines, boxes, colours, strict=True):
        axes.plot(box.p99, line, marker="d", color=colour, markersize=5)
    if spans_wide([value for box in boxes for value in (box.p5, box.p99)]):
        use_log_x(axes)
    axes.set_yticks(lines, [shorten(box.method, LABEL_LENGTH) for box in boxes])
    axes.set_ylim(len(boxes) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _around(lines: Sequence[int]) -> tuple[list[float], list[float]]:
    """From below to above each line, a little beyond its box."""
    return [line - 0.34 for line in lines], [line + 0.34 for line in lines]
