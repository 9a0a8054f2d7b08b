"""A method's line with its band, and its name beside its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.figures.grid import inches
from reports.figures.labels import spread, text_width
from reports.figures.style import FONT, Style
from reports.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: (tasks learnt, what was found then)
Points = Sequence[tuple[int, Estimate]]


@dataclass(frozen=True)
class End:
    """The height at which a line ends, in the unit of its axis, and what stands beside it."""

    height: float
    label: str
    style: Style


def known(series: Sequence[Estimate | None]) -> Points:
    """The entries that were measured, each with the number of tasks learnt by then."""
    return [(learnt, found) for learnt, found in enumerate(series, start=1) if found is not None]


def draw_line(axes: Axes, points: Points, style: Style, size: float = 6.5) -> None:
    """The means, a marker for each; a line joins them."""
    axes.plot(
        [x for x, _ in points],
        [found.mean for _, found in points],
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        linewidth=1.6,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.5,
        clip_on=False,
        zorder=3,
    )


def draw_band(axes: Axes, points: Points, style: Style, alpha: float) -> None:
    """The intervals: a band, or a bar where there is a single one."""
    bounds = [(x, found.mean, found.half_width) for x, found in points if found.half_width]
    if len(bounds) == 1:
        x, mean, half = bounds[0]
        axes.errorbar(x, mean, half, color=style.colour, capsize=3, linewidth=1.2)
        return
    axes.fill_between(
        [x for x, _, _ in bounds],
        [mean - half for _, mean, half in bounds],
        [mean + half for _, mean, half in bounds],
        color=style.colour,
        alpha=alpha,
        linewidth=0,
    )


def name_ends(axes: Axes, ends: Sequence[End], gap: float) -> None:
    """Each line's marker and label to the right of its end, at least `gap` inches apart.

    The limits of the axes must be final.
    """
    width, height = inches(axes)
    to_fraction = axes.transScale + axes.transLimits
    heights = [float(to_fraction.transform((axes.get_xlim()[1], end.height))[1]) for end in ends]
    places = spread(heights, gap / height, 0.0, 1.0)
    for end, wanted, y in zip(ends, heights, places, strict=True):
        axes.plot(
            [1.0, 1.0 + 0.17 / width],
            [wanted, y],
            transform=axes.transAxes,
            color=end.style.colour,
            linewidth=0.9,
            marker=end.style.marker,
            markevery=[1],
            markersize=6,
            clip_on=False,
        )
        axes.text(1.0 + 0.27 / width, y, end.label, transform=axes.transAxes, va="center")


def room_for(labels: Sequence[str]) -> float:
    """Inches that labels at the ends of lines take beside the axes."""
    return 0.27 + max(text_width(label, FONT) for label in labels) / 72 + 0.08
