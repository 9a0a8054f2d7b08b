"""Accuracy matrices: a heat map per method."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import TYPE_CHECKING

from reports.figures.heatmap import Matrix, Scale, bar_below, heat_map, known, numbers
from reports.figures.labels import shorten
from reports.figures.layout import Layout, subplots
from reports.figures.style import Styles, rows_over_tasks, set_title
from reports.groups import Group, Row
from reports.stats import estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
TITLE_LENGTH = 23
LAYOUT = Layout(width=2.02, height=2.02, across=0.2, down=0.35, left=0.5, right=0.2, bottom=0.98, top=0.3)


def draw_matrices(group: Group, styles: Styles) -> Figure | None:
    """One heat map per method, the mean over its seeds; None where the curves are None, and where all tasks
    share one test set.
    """
    rows = [row for row in rows_over_tasks(group) if len(row.done[0].counts or ()) > 1]
    return _figure(rows) if rows else None


def mean_matrix(row: Row) -> list[list[float | None]]:
    """T x T percentages, means over the row's finished cells; None where one of them was not evaluated."""
    matrices = [record.accuracy_matrix for record in row.done if record.accuracy_matrix]
    return [
        [_mean_percentage(values) for values in zip(*lines, strict=True)]
        for lines in zip(*matrices, strict=True)
    ]


def _mean_percentage(values: Sequence[float | None]) -> float | None:
    mean = estimate(None if value is None else 100 * value for value in values)
    return mean.mean if mean else None


def _figure(rows: Sequence[Row]) -> Figure:
    matrices = [mean_matrix(row) for row in rows]
    figure, panels = subplots(len(rows), COLUMNS, LAYOUT)
    bar = bar_below(figure, LAYOUT.left, min(len(rows), 2) * LAYOUT.width)
    scale = _scale(matrices)
    tasks = numbers(len(matrices[0]))
    for i, (axes, row, matrix) in enumerate(zip(panels, rows, matrices, strict=True)):
        heat_map(
            axes,
            matrix,
            scale,
            rows=tasks if i % COLUMNS == 0 else (),
            columns=tasks if i >= len(rows) - COLUMNS else (),
            text=lambda value: f"{value:.0f}",
            bar=bar if i == 0 else None,
        )
        set_title(axes, shorten(row.method, TITLE_LENGTH))
    panels[0].set_ylabel("after learning task")
    panels[-1].set_xlabel("tested on task")
    return figure


def _scale(matrices: Sequence[Matrix]) -> Scale:
    """Full tens around all values: one scale for all panels."""
    values = known(matrices)
    low, high = 10 * floor(min(values) / 10), 10 * ceil(max(values) / 10)
    return Scale(low, max(high, low + 10), "accuracy (%)")
