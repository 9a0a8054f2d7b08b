"""The line of a method with the band of its intervals, and its name beside the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean
from typing import TYPE_CHECKING

from reports.figures.labels import spread, text_width
from reports.figures.layout import inches
from reports.figures.style import FONT, Style
from reports.stats import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: (tasks learnt, the value of each seed)
Points = Sequence[tuple[int, Sequence[float]]]


@dataclass(frozen=True)
class LineEnd:
    """The height at which a line ends, in the unit of its axis, and the label beside it."""

    height: float
    label: str
    style: Style


def complete_points(series: Sequence[Sequence[float | None]]) -> Points:
    """The points after which every seed has a value, from the values of all seeds after each task."""
    return [
        (learnt, [value for value in values if value is not None])
        for learnt, values in enumerate(series, start=1)
        if values and None not in values
    ]


def draw_line(axes: Axes, points: Points, style: Style, alpha: float, size: float = 6.5) -> None:
    """The means over seeds, and the band of their t-intervals; for a single point a bar."""
    import seaborn as sns

    single = len(points) == 1
    sns.lineplot(
        x=[learnt for learnt, values in points for _ in values],
        y=[value for _, values in points for value in values],
        estimator=fmean,
        errorbar=_interval,
        err_style="bars" if single else "band",
        err_kws={"capsize": 3} if single else {"alpha": alpha, "linewidth": 0},
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        linewidth=1.6,
        markersize=size,
        clip_on=False,
        zorder=3,
        ax=axes,
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    seeds = estimate(values)
    if seeds is None or seeds.half_width is None:
        return nan, nan
    return seeds.mean - seeds.half_width, seeds.mean + seeds.half_width


def name_ends(axes: Axes, ends: Sequence[LineEnd], gap: float) -> None:
    """Each line's marker and label to the right of its end, at least `gap` inches apart.

    The limits of the axes must be final.
    """
    width, height = inches(axes)
    to_fraction = axes.transScale + axes.transLimits
    heights = [float(to_fraction.transform((axes.get_xlim()[1], end.height))[1]) for end in ends]
    label_heights = spread(heights, gap / height, 0.0, 1.0)
    for end, y, label_y in zip(ends, heights, label_heights, strict=True):
        axes.plot(
            [1.0, 1.0 + 0.17 / width],
            [y, label_y],
            transform=axes.transAxes,
            color=end.style.colour,
            linewidth=0.9,
            marker=end.style.marker,
            markevery=[1],
            markersize=6,
            clip_on=False,
        )
        axes.text(1.0 + 0.27 / width, label_y, end.label, transform=axes.transAxes, va="center")


def label_room(labels: Sequence[str]) -> float:
    """Inches that labels at the ends of lines take beside the axes."""
    return 0.27 + max(text_width(label, FONT) for label in labels) / 72 + 0.08
