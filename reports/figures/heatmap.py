"""A matrix as colours with its values printed: what matrices, forgetting and diagnostics are drawn with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING

from reports.figures.style import INK
from reports.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Matrix = Sequence[Sequence[float | None]]

#: Values and ticks are printed up to this number of lines and columns.
MOST_PRINTED = 10


def heat_map(axes: Axes, matrix: Matrix, low: float, high: float, colours: str = "cividis") -> AxesImage:
    """Lines downwards, columns to the right, without numbers; None stays blank."""
    import numpy as np

    image = axes.imshow(np.array(matrix, dtype=float), cmap=colours, vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return image


def number_columns(axes: Axes, count: int) -> None:
    """From 1, below."""
    ticks = _ticks(count)
    axes.set_xticks(ticks, [str(i + 1) for i in ticks])


def number_lines(axes: Axes, count: int) -> None:
    """From 1, to the left."""
    ticks = _ticks(count)
    axes.set_yticks(ticks, [str(i + 1) for i in ticks])


def _ticks(count: int) -> range:
    """So many as can be read, the last one among them."""
    step = ceil(count / MOST_PRINTED)
    return range((count - 1) % step, count, step)


def print_values(image: AxesImage, matrix: Matrix, text: Callable[[float], str]) -> None:
    """Each value in its cell, dark on light and light on dark."""
    import numpy as np

    size = 10 if max(len(matrix), len(matrix[0])) <= 5 else 8
    colours = image.to_rgba(np.array(matrix, dtype=float))
    for i, line in enumerate(matrix):
        for j, value in enumerate(line):
            if value is not None:
                ink = _ink_on(colours[i, j])
                image.axes.text(j, i, text(value), ha="center", va="center", color=ink, fontsize=size)


def _ink_on(colour: Sequence[float]) -> str:
    red, green, blue, _ = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def colour_bar(figure: Figure, image: AxesImage, left: float, width: float, label: str) -> None:
    """The meaning of the colours, at the bottom of the figure; inches."""
    across, up = figure.get_size_inches()
    place = figure.add_axes((left / across, 0.42 / up, width / across, 0.1 / up))
    figure.colorbar(image, cax=place, orientation="horizontal", label=label)
    place.tick_params(labelsize=8, length=2)


def hundredths(value: float) -> str:
    """The shortest form with two digits after the point.

    >>> [hundredths(value) for value in (0.0, 0.034, 0.5, 1.0, 10.25)]
    ['0', '.03', '.50', '1', '10.25']
    """
    text = number(value, 2)
    return text.removesuffix(".00") if text.endswith(".00") else text.removeprefix("0")
