"""Accuracy along the stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.metrics import incremental_accuracies
from reports.figures import style
from reports.figures.grid import Room, grid
from reports.figures.labels import short
from reports.figures.lines import End, draw_band, draw_line, known, name_ends, room_for
from reports.figures.style import GRID, LABEL_HEIGHT, WIDTH, Style
from reports.groups import Group, Row
from reports.stats import Estimate, estimate
from reports.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Characters of a name that fit beside the curves.
LABEL_LENGTH = 26


def write_curves(group: Group, styles: dict[str, Style], folder: Path) -> list[Path]:
    """A_i after each experience: mean over seeds, with the band of its interval.

    Empty without a result, and for a single task, where there is nothing to follow.
    """
    rows = style.followed(group)
    if not rows:
        return []
    return style.saved(lambda: _figure(rows, styles), folder / f"{group.stem}-curves")


def _figure(rows: Sequence[Row], styles: dict[str, Style]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = grid(1, 1, _room([_label(row) for row in rows]))
    alpha = 0.5 / max(len(rows), 4)
    ends = [_draw(axes, row, styles[row.method], alpha) for row in rows]
    axes.set_xlim(0.8, rows[0].records[0].tasks + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks learnt")
    axes.set_ylabel("accuracy, mean over tasks learnt (%)")
    axes.grid(axis="y", **GRID)
    axes.set_ylim(*_limits(axes))
    name_ends(axes, ends, LABEL_HEIGHT)
    return figure


def _room(labels: Sequence[str]) -> Room:
    right, left = room_for(labels), 0.72
    height = max(2.9, 0.25 * len(labels) + 0.9)
    return Room(WIDTH - left - right, height, left=left, right=right, bottom=0.55)


def _label(row: Row) -> str:
    _, end = known(_curve(row))[-1]
    return f"{short(row.method, LABEL_LENGTH)}  {number(end.mean, 1)}"


def _draw(axes: Axes, row: Row, look: Style, alpha: float) -> End:
    points = known(_curve(row))
    last, end = points[-1]
    if row.last_only:  # it has no curve: a dash shows the height to compare the ends of the others with
        axes.hlines(end.mean, last - 0.5, last + 0.2, look.colour, linestyles=(0, (4, 3)), linewidth=1.3)
    draw_line(axes, points, look)
    draw_band(axes, points, look, alpha)
    return End(end.mean, _label(row), look)


def _curve(row: Row) -> list[Estimate | None]:
    """A_i for i = 1..T in percent, over seeds."""
    seeds = [incremental_accuracies(r.correct, r.counts) for r in row.done if r.correct and r.counts]
    return [
        estimate(None if value is None else 100 * value for value in values)
        for values in zip(*seeds, strict=True)
    ]


def _limits(axes: Axes) -> tuple[float, float]:
    """What the lines and bands span, with some air, and never beyond 0 and 100 %."""
    low, high = axes.get_ylim()
    return max(low, -1.0), min(high, 101.0)
