"""Panels at places known in advance: nothing is solved, so the layout is the same in every file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

#: From this ratio of the largest to the smallest value on, a scale is logarithmic.
WIDE = 30.0


@dataclass(frozen=True)
class Layout:
    """Inches: a panel's width and height, the gaps between panels, and the margins of the figure."""

    width: float
    height: float
    across: float = 0.3
    down: float = 0.3
    left: float = 0.1
    right: float = 0.1
    bottom: float = 0.1
    top: float = 0.1


def subplots(count: int, columns: int, layout: Layout) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `columns` side by side, and no larger than they need."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    lines = ceil(count / columns)
    width = layout.left + columns * layout.width + (columns - 1) * layout.across + layout.right
    height = layout.bottom + lines * layout.height + (lines - 1) * layout.down + layout.top
    figure = Figure(figsize=(width, height))
    lefts = [layout.left + i % columns * (layout.width + layout.across) for i in range(count)]
    tops = [layout.top + i // columns * (layout.height + layout.down) for i in range(count)]
    size = (layout.width / width, layout.height / height)
    panels = [
        figure.add_axes((x / width, 1 - (y + layout.height) / height, *size))
        for x, y in zip(lefts, tops, strict=True)
    ]
    return figure, panels


def inches(axes: Axes) -> tuple[float, float]:
    """The width and height of a panel."""
    return axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi


def use_log_x(axes: Axes) -> None:
    """Make the horizontal scale logarithmic, with its numbers written in full."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(plain_numbers())
    axes.xaxis.set_minor_formatter(NullFormatter())


def plain_numbers() -> Formatter:
    """Tick labels such as 1,000, not powers of ten."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.10g}")


def spans_wide(values: Sequence[float]) -> bool:
    """Whether the positive values differ so much that a linear scale would hide the small ones.

    >>> spans_wide([0, 1, 31]), spans_wide([0, 1, 29]), spans_wide([0])
    (True, False, False)
    """
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > WIDE * min(positive)
