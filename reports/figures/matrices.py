"""Accuracy matrices: a heat map per method."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING

from reports.figures import style
from reports.figures.heatmap import MOST_PRINTED, Matrix, heat_map, print_values
from reports.figures.labels import short
from reports.figures.style import CHARACTER_WIDTH, WIDTH
from reports.groups import Group, Row
from reports.stats import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


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
    from matplotlib.figure import Figure

    matrices = [mean_matrix(row) for row in rows]
    columns = min(len(rows), 3 if len(matrices[0]) <= 5 else 2)
    lines = ceil(len(rows) / columns)
    panel = (WIDTH - 1.1) / max(columns, 2)
    size = (panel * columns + 1.1, (panel + 0.3) * lines + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    limits = _colour_limits(matrices)
    images = [
        _draw(axes, short(row.method, int(panel / CHARACTER_WIDTH)), matrix, limits)
        for axes, row, matrix in zip(panels, rows, matrices, strict=False)
    ]
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    figure.supxlabel("tested on task", fontsize=10)
    figure.supylabel("after learning task", fontsize=10)
    figure.colorbar(images[0], ax=panels, label="accuracy (%)", shrink=min(0.9, 1.6 / lines), aspect=25)
    return figure


def _colour_limits(matrices: Sequence[Matrix]) -> tuple[float, float]:
    """Full tens around all values: one scale for all panels."""
    values = [value for matrix in matrices for line in matrix for value in line if value is not None]
    low, high = 10 * floor(min(values) / 10), 10 * ceil(max(values) / 10)
    return low, max(high, low + 10)


def _draw(axes: Axes, title: str, matrix: Matrix, limits: tuple[float, float]) -> AxesImage:
    image = heat_map(axes, matrix, *limits)
    axes.set_title(title, fontsize=10, loc="left")
    if len(matrix) <= MOST_PRINTED:
        print_values(image, matrix, lambda value: f"{value:.0f}")
    return image
