"""How much of each task is lost at the end: a line per method, a column per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.metrics import forgetting_by_task
from reports.figures import style
from reports.figures.grid import Room, grid
from reports.figures.heatmap import MOST_PRINTED, colour_bar, heat_map, number_columns, print_values
from reports.figures.labels import short
from reports.groups import Group, Row
from reports.stats import estimate
from reports.tables import scaled, with_interval
from reports.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_LENGTH = 22
ROOM = Room(width=3.9, height=0.0, left=2.05, right=1.2, bottom=0.95, top=0.32)
LINE = 0.3


def write_forgetting(group: Group, folder: Path) -> list[Path]:
    """The best accuracy each task had before the last one was learnt minus its final one, means over seeds.

    Empty where no method was evaluated before the last task.
    """
    rows = [row for row in style.followed(group) if lost(row)]
    if not rows:
        return []
    return style.saved(lambda: _figure(rows), folder / f"{group.stem}-forgetting")


def lost(row: Row) -> list[float | None]:
    """Points lost per task but the last, the mean over seeds (Chaudhry et al., 2018, before their mean).

    Below zero where a task gained; None where a seed lacks an evaluation; empty if no task has a number.
    """
    seeds = [forgetting_by_task(r.correct, r.counts) for r in row.done if r.correct and r.counts]
    found = [estimate(values) for values in zip(*seeds, strict=True)]
    means = [None if each is None else 100 * each.mean for each in found]
    return means if any(mean is not None for mean in means) else []


def _figure(rows: Sequence[Row]) -> Figure:
    figure, (axes,) = grid(1, 1, replace(ROOM, height=LINE * len(rows)))
    matrix = [lost(row) for row in rows]
    values = [value for losses in matrix for value in losses if value is not None]
    image = heat_map(axes, matrix, min(0.0, *values), max(10.0, *values), colours="cividis_r")
    axes.set_aspect("auto")
    number_columns(axes, len(matrix[0]))
    if len(matrix[0]) <= MOST_PRINTED:
        print_values(image, matrix, lambda value: number(value, 0))
    axes.set_yticks(range(len(rows)), [short(row.method, LABEL_LENGTH) for row in rows], fontsize=10)
    axes.set_xlabel("task")
    _write_means(axes, rows)
    colour_bar(figure, image, ROOM.left, ROOM.width, "accuracy lost since the task's best (points)")
    return figure


def _write_means(axes: Axes, rows: Sequence[Row]) -> None:
    """To the right of each line its mean over the tasks, with the interval over seeds."""
    beside = axes.get_yaxis_transform()
    for y, text in [(-0.75, "mean"), *enumerate(map(_mean, rows))]:
        axes.text(1.03, y, text, va="center", transform=beside)


def _mean(row: Row) -> str:
    return with_interval(estimate(scaled(record, "forgetting") for record in row.done), 1)
