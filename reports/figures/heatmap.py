"""Heat maps with printed values, used for accuracy matrices, forgetting and diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from reports.figures.style import FONT, INK, SMALL_FONT
from reports.text import number

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

#: Rows of values; None where there is none.
Matrix = Sequence[Sequence[float | None]]

#: The luminance above which dark text has more contrast than white text. Seaborn's own limit is 0.408, where
#: white text has a contrast of 2.3 only.
LIGHT = 0.22

#: Values are printed, and all rows and columns numbered, up to this number of rows and columns.
MAX_PRINTED = 10


@dataclass(frozen=True)
class Scale:
    """The values at the two ends of a colour map, and the name of the quantity."""

    low: float
    high: float
    label: str
    colours: str = "viridis"


def heat_map(
    axes: Axes,
    matrix: Matrix,
    scale: Scale,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    text: Callable[[float], str] | None = None,
    bar: Axes | None = None,
) -> None:
    """Draw the matrix with the labels of its rows and columns; None stays blank.

    Args:
        text: prints each value of a matrix that is small enough.
        bar: where the colour bar is drawn, if at all.
    """
    import numpy as np
    import seaborn as sns

    values = np.array(matrix, dtype=float)
    small = max(values.shape) <= MAX_PRINTED
    sns.heatmap(
        values,
        vmin=scale.low,
        vmax=scale.high,
        cmap=scale.colours,
        annot=[["" if v is None else text(v) for v in row] for row in matrix] if text and small else None,
        fmt="",
        annot_kws={"fontsize": FONT if max(values.shape) <= 5 else SMALL_FONT},
        xticklabels=columns,
        yticklabels=rows,
        cbar=bar is not None,
        cbar_ax=bar,
        cbar_kws={"orientation": "horizontal", "label": scale.label},
        rasterized=not small,  # a path for each of many cells would make large files
        ax=axes,
    )
    axes.tick_params(length=0, labelsize=SMALL_FONT, labelrotation=0)
    _colour_values(axes, values)


def _colour_values(axes: Axes, values: NDArray[np.float64]) -> None:
    """Dark text on light cells and white text on dark ones."""
    from seaborn.utils import relative_luminance

    (cells,) = axes.collections
    for text in axes.texts:
        x, y = text.get_position()
        luminance = relative_luminance(cells.to_rgba(values[int(y), int(x)]))
        text.set_color(INK if luminance > LIGHT else "white")


def numbers(count: int) -> list[str]:
    """Labels from "1" to `count`, all but every so many blank where there are more than can be read.

    >>> numbers(3), numbers(12)[-4:]
    (['1', '2', '3'], ['', '10', '', '12'])
    """
    step = ceil(count / MAX_PRINTED)
    return [str(i) if (count - i) % step == 0 else "" for i in range(1, count + 1)]


def known(matrices: Iterable[Matrix]) -> list[float]:
    """All values of the matrices, without the missing."""
    return [value for matrix in matrices for row in matrix for value in row if value is not None]


def bar_below(figure: Figure, left: float, width: float) -> Axes:
    """A place for a colour bar at the bottom of the figure; inches."""
    across, up = figure.get_size_inches()
    return bar_axes(figure.add_axes((left / across, 0.42 / up, width / across, 0.1 / up)))


def bar_axes(axes: Axes) -> Axes:
    """Axes with the small ticks of a colour bar."""
    axes.tick_params(labelsize=SMALL_FONT, length=2)
    return axes


def hundredths(value: float) -> str:
    """The shortest form with two digits after the point.

    >>> [hundredths(value) for value in (0.0, 0.034, 0.5, 1.0, 10.25)]
    ['0', '.03', '.50', '1', '10.25']
    """
    text = number(value, 2)
    return text.removesuffix(".00") if text.endswith(".00") else text.removeprefix("0")
