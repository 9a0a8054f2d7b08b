"""Accuracy of each task lost by the end of the stream: a line per method, a column per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.metrics import forgetting_by_task
from reports.figures.heatmap import Scale, bar_below, heat_map, known, numbers
from reports.figures.labels import shorten
from reports.figures.layout import Layout, subplots
from reports.figures.style import FONT, Styles, rows_over_tasks
from reports.groups import Group, Row
from reports.stats import estimate
from reports.tables import with_interval
from reports.text import number
from reports.values import scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_LENGTH = 22
LAYOUT = Layout(width=3.9, height=0.0, left=2.05, right=1.2, bottom=0.95, top=0.32)
LINE_HEIGHT = 0.3


def draw_forgetting(group: Group, styles: Styles) -> Figure | None:
    """The best accuracy of each task before the last was learnt, minus its final one; means over seeds.

    None where no method was evaluated before the last task.
    """
    rows = [row for row in rows_over_tasks(group) if accuracy_lost(row)]
    return _figure(rows) if rows else None


def accuracy_lost(row: Row) -> list[float | None]:
    """Points lost of each task but the last, the mean over seeds (Chaudhry et al., 2018, before their mean).

    Negative where a task gained; None where a seed lacks an evaluation; empty if no task has a number.
    """
    seeds = [forgetting_by_task(r.correct, r.counts) for r in row.done if r.correct and r.counts]
    estimates = [estimate(values) for values in zip(*seeds, strict=True)]
    means = [None if each is None else 100 * each.mean for each in estimates]
    return means if any(mean is not None for mean in means) else []


def _figure(rows: Sequence[Row]) -> Figure:
    figure, (axes,) = subplots(1, 1, replace(LAYOUT, height=LINE_HEIGHT * len(rows)))
    matrix = [accuracy_lost(row) for row in rows]
    losses = known([matrix])
    label = "accuracy lost since the task's best (points)"
    heat_map(
        axes,
        matrix,
        Scale(min(0.0, *losses), max(10.0, *losses), label, "viridis_r"),
        rows=[shorten(row.method, LABEL_LENGTH) for row in rows],
        columns=numbers(len(matrix[0])),
        text=lambda value: number(value, 0),
        bar=bar_below(figure, LAYOUT.left, LAYOUT.width),
    )
    axes.tick_params(axis="y", labelsize=FONT)
    axes.set_xlabel("task")
    _write_means(axes, rows)
    return figure


def _write_means(axes: Axes, rows: Sequence[Row]) -> None:
    """To the right of each line its mean over the tasks, with the interval over seeds."""
    beside = axes.get_yaxis_transform()
    means = [(i + 0.5, _mean(row)) for i, row in enumerate(rows)]
    for y, text in [(-0.25, "mean"), *means]:
        axes.text(1.03, y, text, va="center", transform=beside)


def _mean(row: Row) -> str:
    return with_interval(estimate(scaled(record, "forgetting") for record in row.done), 1)
