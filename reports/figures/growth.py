"""Costs that grow with the number of tasks: small panels, a line per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import fmean
from typing import TYPE_CHECKING

from bench.costs import Cost
from bench.record import Record
from reports.figures.labels import shorten
from reports.figures.layout import Layout, inches, plain_numbers, spans_wide, subplots
from reports.figures.lines import LineEnd, Points, complete_points, draw_line, label_room, name_ends
from reports.figures.style import LABEL_HEIGHT, WIDTH, Styles, rows_over_tasks, set_title
from reports.groups import Group, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_LENGTH = 17
COLUMNS = 2
LEFT = 0.68  # of each panel, for ticks such as 1.25MB

#: An entry per task, None where it was not measured.
Series = Sequence[float | None]


@dataclass(frozen=True)
class CostSeries:
    """A cost after each task. With a unit, even "", its ticks have prefixes such as k before the unit."""

    title: str
    series: Callable[[Cost], Series]
    unit: str | None = None


@dataclass(frozen=True)
class GrowthPanel:
    """A cost, and its points for each method that has any."""

    cost: CostSeries
    lines: Mapping[str, Points]


def draw_growth(group: Group, styles: Styles) -> Figure | None:
    """A panel for each cost that was measured; None without any, and for a single task.

    Methods that learn all tasks at once are left out: their costs do not follow the number of tasks.
    """
    panels = growth_panels([row for row in rows_over_tasks(group) if not row.is_reference])
    return _figure(panels, styles) if panels else None


def growth_panels(rows: Sequence[Row]) -> list[GrowthPanel]:
    """The panels that have lines."""
    panels = [GrowthPanel(cost, _lines(rows, cost)) for cost in COSTS]
    return [panel for panel in panels if panel.lines]


def _lines(rows: Sequence[Row], cost: CostSeries) -> dict[str, Points]:
    lines = {row.method: complete_points(_by_task(row, cost)) for row in rows}
    return {method: points for method, points in lines.items() if points}


def _by_task(row: Row, cost: CostSeries) -> list[tuple[float | None, ...]]:
    """For each task the values of all seeds; empty if a seed lacks the cost altogether."""
    seeds = [_series(record, cost) for record in row.done]
    return list(zip(*seeds, strict=True)) if all(map(len, seeds)) else []


def _series(record: Record, cost: CostSeries) -> Series:
    return cost.series(record.cost) if record.cost else []


# ---- costs -------------------------------------------------------------------------------------


def _flops(cost: Cost) -> Series:
    plain = cost.plain_flops
    return [flops and flops / plain for flops in cost.by_experience("flops")] if plain else []


def _latency(cost: Cost) -> Series:
    """Timed after some tasks only."""
    ratios = {at.experiences: at.ratio for at in cost.latency or () if at.batch == 1}
    return [ratios.get(learnt) for learnt in range(1, max(ratios, default=0) + 1)]


def _stored(cost: Cost) -> Series:
    return cost.by_experience("stored_bytes")


def _trainable(cost: Cost) -> Series:
    return cost.by_experience("trainable")


def _seconds(cost: Cost) -> Series:
    return cost.by_experience("train_seconds")


COSTS = (
    CostSeries("FLOPs of one image / plain ViT's", _flops),
    CostSeries("latency, batch 1 / plain ViT's", _latency),
    CostSeries("kept by the method (bytes)", _stored, "B"),
    CostSeries("trainable parameters", _trainable, ""),
    CostSeries("training of each task (s)", _seconds),
)


# ---- drawing -----------------------------------------------------------------------------------


def _figure(panels: Sequence[GrowthPanel], styles: Styles) -> Figure:
    names = sorted({shorten(method, LABEL_LENGTH) for panel in panels for method in panel.lines})
    figure, axes_of_panels = subplots(len(panels), COLUMNS, _layout(names))
    last = max(learnt for panel in panels for points in panel.lines.values() for learnt, _ in points)
    for axes, panel in zip(axes_of_panels, panels, strict=True):
        _draw(axes, panel, styles, last)
    for axes in axes_of_panels[-COLUMNS:]:
        axes.set_xlabel("tasks learnt")
    return figure


def _layout(names: Sequence[str]) -> Layout:
    right = label_room(names)
    width = (WIDTH - COLUMNS * (LEFT + right)) / COLUMNS
    height = max(1.3, LABEL_HEIGHT * len(names))
    return Layout(width, height, across=LEFT + right, down=0.65, left=LEFT, right=right, bottom=0.5, top=0.35)


def _draw(axes: Axes, panel: GrowthPanel, styles: Styles, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for method, points in panel.lines.items():
        draw_line(axes, points, styles[method], alpha=0.12, size=4.5)
    set_title(axes, panel.cost.title, pad=9.0, x=-0.8 * LEFT / inches(axes)[0])
    axes.set_xlim(0.8, last + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    _set_scale(axes, panel)
    axes.grid(axis="y")
    name_ends(axes, _ends(panel, styles), LABEL_HEIGHT)


def _set_scale(axes: Axes, panel: GrowthPanel) -> None:
    """From zero, so that growth shows in proportion; logarithmic where the values span much.

    A logarithmic scale begins with zero only if it is among the values.
    """
    from matplotlib.ticker import EngFormatter

    unit = panel.cost.unit
    means = [fmean(values) for points in panel.lines.values() for _, values in points]
    if spans_wide(means):
        least = min(mean for mean in means if mean > 0)
        axes.set_yscale("symlog", linthresh=least, linscale=0.5)
        axes.set_ylim(bottom=0.0 if min(means) == 0 else least)
        axes.set_yticks([*([0.0] if min(means) == 0 else []), *_decades(least, max(means))])
    else:
        axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(plain_numbers() if unit is None else EngFormatter(unit=unit, sep=""))


def _decades(low: float, high: float) -> list[float]:
    """The powers of ten from low to high."""
    return [10.0**power for power in range(ceil(log10(low)), floor(log10(high)) + 1)]


def _ends(panel: GrowthPanel, styles: Styles) -> list[LineEnd]:
    return [
        LineEnd(fmean(points[-1][1]), shorten(method, LABEL_LENGTH), styles[method])
        for method, points in panel.lines.items()
    ]
