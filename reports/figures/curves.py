"""Accuracy along the stream of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from bench.metrics import incremental_accuracies
from reports.figures.labels import shorten
from reports.figures.layout import Layout, subplots
from reports.figures.lines import LineEnd, Points, complete_points, draw_line, label_room, name_ends
from reports.figures.style import LABEL_HEIGHT, WIDTH, Style, Styles, rows_over_tasks
from reports.groups import Group, Row
from reports.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Characters of a name that fit beside the curves.
LABEL_LENGTH = 26


def draw_curves(group: Group, styles: Styles) -> Figure | None:
    """Accuracy after each task: the mean over seeds, with the band of its interval.

    None without a result, and for a single task, where nothing changes from task to task.
    """
    rows = rows_over_tasks(group)
    return _figure(rows, styles) if rows else None


def _figure(rows: Sequence[Row], styles: Styles) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = subplots(1, 1, _layout([_label(row) for row in rows]))
    alpha = 0.5 / max(len(rows), 4)
    ends = [_draw(axes, row, styles[row.method], alpha) for row in rows]
    axes.set_xlim(0.8, rows[0].records[0].tasks + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks learnt")
    axes.set_ylabel("accuracy, mean over tasks learnt (%)")
    axes.grid(axis="y")
    axes.set_ylim(*_limits(axes))
    name_ends(axes, ends, LABEL_HEIGHT)
    return figure


def _layout(labels: Sequence[str]) -> Layout:
    right, left = label_room(labels), 0.72
    height = max(2.9, 0.25 * len(labels) + 0.9)
    return Layout(WIDTH - left - right, height, left=left, right=right, bottom=0.55)


def _label(row: Row) -> str:
    _, accuracies = _curve(row)[-1]
    return f"{shorten(row.method, LABEL_LENGTH)}  {number(fmean(accuracies), 1)}"


def _draw(axes: Axes, row: Row, style: Style, alpha: float) -> LineEnd:
    points = _curve(row)
    last, accuracies = points[-1]
    height = fmean(accuracies)
    if row.is_reference:  # no curve: a dash shows the height, to compare with the ends of the other curves
        axes.hlines(height, last - 0.5, last + 0.2, style.colour, linestyles=(0, (4, 3)), linewidth=1.3)
    draw_line(axes, points, style, alpha)
    return LineEnd(height, _label(row), style)


def _curve(row: Row) -> Points:
    """The mean accuracy over the tasks learnt so far, in percent, after each task."""
    seeds = [incremental_accuracies(r.correct, r.counts) for r in row.done if r.correct and r.counts]
    return complete_points(
        [[None if value is None else 100 * value for value in values] for values in zip(*seeds, strict=True)]
    )


def _limits(axes: Axes) -> tuple[float, float]:
    """The span of the lines and bands with some air, and never beyond 0 and 100 %."""
    low, high = axes.get_ylim()
    return max(low, -1.0), min(high, 101.0)
