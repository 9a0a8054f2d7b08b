"""Panels at places known beforehand: a layout that need not be solved, the same in every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

#: A factor between the smallest and the largest value from which on a scale is logarithmic.
WIDE = 30.0


@dataclass(frozen=True)
class Room:
    """Inches: a panel's width and height, the gaps between panels, and the margins of the figure."""

    width: float
    height: float
    across: float = 0.3
    down: float = 0.3
    left: float = 0.1
    right: float = 0.1
    bottom: float = 0.1
    top: float = 0.1


def grid(panels: int, columns: int, room: Room) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, `columns` side by side, and no more of it than they need."""
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    lines = ceil(panels / columns)
    width = room.left + columns * room.width + (columns - 1) * room.across + room.right
    height = room.bottom + lines * room.height + (lines - 1) * room.down + room.top
    figure = Figure(figsize=(width, height))
    lefts = [room.left + i % columns * (room.width + room.across) for i in range(panels)]
    tops = [room.top + i // columns * (room.height + room.down) for i in range(panels)]
    axes = [
        figure.add_axes((x / width, 1 - (y + room.height) / height, room.width / width, room.height / height))
        for x, y in zip(lefts, tops, strict=True)
    ]
    return figure, axes


def inches(axes: Axes) -> tuple[float, float]:
    """Their width and height."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def widen(axes: Axes) -> None:
    """A logarithmic scale across, with its numbers written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(written_out())
    axes.xaxis.set_minor_formatter(NullFormatter())


def written_out() -> Formatter:
    """Numbers as they are, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.10g}")


def spans_wide(values: Sequence[float]) -> bool:
    """Whether what is above zero differs by so much that a linear scale would hide the small.

    >>> spans_wide([0, 1, 31]), spans_wide([0, 1, 29]), spans_wide([0])
    (True, False, False)
    """
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > WIDE * min(positive)
