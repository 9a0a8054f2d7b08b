"""Accuracy matrices: a heat map per method."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING

from reports.figures import style
from reports.figures.grid import Room, grid
from reports.figures.heatmap import (
    MOST_PRINTED,
    Matrix,
    colour_bar,
    heat_map,
    number_columns,
    number_lines,
    print_values,
)
from reports.figures.labels import short
from reports.figures.style import set_title
from reports.groups import Group, Row
from reports.stats import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLUMNS = 3
TITLE_LENGTH = 23
ROOM = Room(width=2.02, height=2.02, across=0.2, down=0.35, left=0.5, right=0.2, bottom=0.98, top=0.3)


def write_matrices(group: Group, folder: Path) -> list[Path]:
    """One heat map per method, the mean over its seeds. Empty as the curves are."""
    rows = style.followed(group)
    if not rows:
        return []
    return style.saved(lambda: _figure(rows), folder / f"{group.stem}-matrices")


def mean_matrix(row: Row) -> list[list[float | None]]:
    """T x T percentages, the mean over the row's finished cells; None where one was not evaluated."""
    matrices = [record.accuracy_matrix for record in row.done if record.accuracy_matrix]
    return [
        [
            found.mean if (found := estimate(None if v is None else 100 * v for v in values)) else None
            for values in zip(*lines, strict=True)
        ]
        for lines in zip(*matrices, strict=True)
    ]


def _figure(rows: Sequence[Row]) -> Figure:
    matrices = [mean_matrix(row) for row in rows]
    figure, places = grid(len(rows), COLUMNS, ROOM)
    limits = _colour_limits(matrices)
    images = [
        _draw(axes, row.method, matrix, limits)
        for axes, row, matrix in zip(places, rows, matrices, strict=True)
    ]
    for axes in places[::COLUMNS]:
        number_lines(axes, len(matrices[0]))
    for axes in places[-COLUMNS:]:
        number_columns(axes, len(matrices[0]))
    places[0].set_ylabel("after learning task")
    places[-1].set_xlabel("tested on task")
    colour_bar(figure, images[0], ROOM.left, min(len(rows), 2) * ROOM.width, "accuracy (%)")
    return figure


def _colour_limits(matrices: Sequence[Matrix]) -> tuple[float, float]:
    """Full tens around all values: one scale for all panels."""
    values = [value for matrix in matrices for line in matrix for value in line if value is not None]
    low, high = 10 * floor(min(values) / 10), 10 * ceil(max(values) / 10)
    return low, max(high, low + 10)


def _draw(axes: Axes, title: str, matrix: Matrix, limits: tuple[float, float]) -> AxesImage:
    image = heat_map(axes, matrix, *limits)
    set_title(axes, short(title, TITLE_LENGTH))
    if len(matrix) <= MOST_PRINTED:
        print_values(image, matrix, lambda value: f"{value:.0f}")
    return image
