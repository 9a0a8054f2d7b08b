"""How the times of inference are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from bench.costs import Latency, percentiles
from reports.figures import style
from reports.figures.grid import Room, grid, spans_wide, widen
from reports.figures.labels import short
from reports.figures.style import FAINT, GRID, INK, Style, set_title
from reports.groups import Group, Row
from reports.tables import last_latency, outer_batch_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = "plain timm ViT"
LABEL_LENGTH = 22
LINE = 0.3
ROOM = Room(width=2.35, height=0.0, across=0.2, left=2.1, right=0.15, bottom=0.55, top=0.35)


@dataclass(frozen=True)
class Box:
    """What is drawn of one model's samples, in milliseconds."""

    method: str
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    p99: float


def write_latency(group: Group, styles: dict[str, Style], folder: Path) -> list[Path]:
    """The time of a call after the last experience, all seeds: at batch 1, and at the largest batch.

    Empty where nothing was timed.
    """
    panels = {size: found for size in outer_batch_sizes(group) if (found := boxes(group, size))}
    if not panels:
        return []
    return style.saved(lambda: _figure(panels, styles), folder / f"{group.stem}-latency")


def boxes(group: Group, batch: int) -> list[Box]:
    """A box for each timed method, in the order of the table, and that of the plain ViT at the end."""
    timed = {row.method: times for row in group.rows if (times := _times(row, batch))}
    plain = [at.plain.samples for times in timed.values() for at in times]
    found = [_box(method, [at.model.samples for at in times]) for method, times in timed.items()]
    return [*found, _box(PLAIN, plain)] if found else []


def _times(row: Row, batch: int) -> list[Latency]:
    return [found for record in row.done if (found := last_latency(record, batch))]


def _box(method: str, samples: Sequence[Sequence[float]]) -> Box:
    cuts = percentiles([1000 * seconds for seconds in chain(*samples)])
    return Box(method, *(cuts[p - 1] for p in (5, 25, 50, 75, 95, 99)))


# ---- drawing -----------------------------------------------------------------------------------


def _figure(panels: dict[int, list[Box]], styles: dict[str, Style]) -> Figure:
    lines = max(map(len, panels.values()))
    figure, places = grid(len(panels), len(panels), replace(ROOM, height=LINE * lines))
    for axes, (batch, found) in zip(places, panels.items(), strict=True):
        _draw(axes, found, styles)
        set_title(axes, f"batch {batch}")
        axes.set_xlabel("one call (ms)")
    for axes in places[1:]:
        axes.tick_params(labelleft=False)
    return figure


def _draw(axes: Axes, found: Sequence[Box], styles: dict[str, Style]) -> None:
    colours = [styles[box.method].colour if box.method in styles else FAINT for box in found]
    lines = range(len(found))
    axes.axvline(found[-1].median, color=FAINT, linestyle=(0, (5, 4)), linewidth=1.2)
    axes.hlines(lines, [b.p5 for b in found], [b.p95 for b in found], colours, linewidth=1.4)
    axes.barh(lines, [b.p75 - b.p25 for b in found], 0.56, [b.p25 for b in found], color=colours)
    axes.vlines([b.median for b in found], *_about(lines), color="white", linewidth=2.6)
    axes.vlines([b.median for b in found], *_about(lines), color=INK, linewidth=1.4)
    for line, box, colour in zip(lines, found, colours, strict=True):
        axes.plot(box.p99, line, marker="d", color=colour, markersize=5)
    if spans_wide([value for box in found for value in (box.p5, box.p99)]):
        widen(axes)
    axes.set_yticks(lines, [short(box.method, LABEL_LENGTH) for box in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", **GRID)


def _about(lines: Sequence[int]) -> tuple[list[float], list[float]]:
    """From below to above each line, a little beyond its box."""
    return [line - 0.34 for line in lines], [line + 0.34 for line in lines]
