"""What grows with the number of tasks: small panels, a line per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING

from bench.costs import Cost, Parameters
from bench.record import Record
from reports.figures import style
from reports.figures.grid import Room, grid, inches, spans_wide, written_out
from reports.figures.labels import short
from reports.figures.lines import End, Points, draw_band, draw_line, known, name_ends, room_for
from reports.figures.style import GRID, LABEL_HEIGHT, WIDTH, Style, set_title
from reports.groups import Group, Row
from reports.stats import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_LENGTH = 17
COLUMNS = 2
LEFT = 0.6

#: An entry per experience, None where it was not measured.
Series = Sequence[float | None]


@dataclass(frozen=True)
class Quantity:
    """What a panel shows of a cell's cost. With a unit, "" too, ticks have prefixes such as k before it."""

    title: str
    series: Callable[[Cost], Series]
    unit: str | None = None


@dataclass(frozen=True)
class Panel:
    """A quantity, and what is known of it for each method that has any."""

    quantity: Quantity
    lines: Mapping[str, Points]


def write_growth(group: Group, styles: dict[str, Style], folder: Path) -> list[Path]:
    """A panel for each quantity that was measured; empty without any, and for a single task.

    What learns all tasks at once is left out: nothing of it follows their number.
    """
    panels = panels_of([row for row in style.followed(group) if not row.last_only])
    if not panels:
        return []
    return style.saved(lambda: _figure(panels, styles), folder / f"{group.stem}-growth")


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """The panels that have lines."""
    panels = [Panel(quantity, _lines(rows, quantity)) for quantity in QUANTITIES]
    return [panel for panel in panels if panel.lines]


def _lines(rows: Sequence[Row], quantity: Quantity) -> dict[str, Points]:
    found = {row.method: known([estimate(v) for v in _by_experience(row, quantity)]) for row in rows}
    return {method: points for method, points in found.items() if points}


def _by_experience(row: Row, quantity: Quantity) -> list[tuple[float | None, ...]]:
    """For each experience the values of all seeds; none if a seed lacks the quantity altogether."""
    seeds = [_series(record, quantity) for record in row.done]
    return list(zip(*seeds, strict=True)) if all(map(len, seeds)) else []


def _series(record: Record, quantity: Quantity) -> Series:
    return quantity.series(record.cost) if record.cost else []


# ---- quantities --------------------------------------------------------------------------------


def _flops(cost: Cost) -> Series:
    return [each / cost.plain_flops for each in cost.flops] if cost.flops and cost.plain_flops else []


def _latency(cost: Cost) -> Series:
    """Timed after some experiences only."""
    ratios = {at.experiences: at.ratio for at in cost.latency or () if at.batch == 1}
    return [ratios.get(learnt) for learnt in range(1, max(ratios, default=0) + 1)]


def _stored(cost: Cost) -> Series:
    return (cost.parameters or Parameters()).stored_bytes or []


def _trainable(cost: Cost) -> Series:
    return (cost.parameters or Parameters()).trainable or []


def _seconds(cost: Cost) -> Series:
    return cost.train_seconds or []


QUANTITIES = (
    Quantity("FLOPs of one image / plain ViT's", _flops),
    Quantity("latency, batch 1 / plain ViT's", _latency),
    Quantity("kept by the method (bytes)", _stored, "B"),
    Quantity("trainable parameters", _trainable, ""),
    Quantity("training of each task (s)", _seconds),
)


# ---- drawing -----------------------------------------------------------------------------------


def _figure(panels: Sequence[Panel], styles: dict[str, Style]) -> Figure:
    names = sorted({short(method, LABEL_LENGTH) for panel in panels for method in panel.lines})
    figure, places = grid(len(panels), COLUMNS, _room(names))
    last = max(x for panel in panels for points in panel.lines.values() for x, _ in points)
    for axes, panel in zip(places, panels, strict=True):
        _draw(axes, panel, styles, last)
    for axes in places[-COLUMNS:]:
        axes.set_xlabel("tasks learnt")
    return figure


def _room(names: Sequence[str]) -> Room:
    right = room_for(names)
    width = (WIDTH - COLUMNS * (LEFT + right)) / COLUMNS
    height = max(1.3, LABEL_HEIGHT * len(names))
    return Room(width, height, across=LEFT + right, down=0.65, left=LEFT, right=right, bottom=0.5, top=0.35)


def _draw(axes: Axes, panel: Panel, styles: dict[str, Style], last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for method, points in panel.lines.items():
        draw_line(axes, points, styles[method], size=4.5)
        draw_band(axes, points, styles[method], alpha=0.12)
    set_title(axes, panel.quantity.title, pad=9.0, x=-0.8 * LEFT / inches(axes)[0])
    axes.set_xlim(0.8, last + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    _scale(axes, panel)
    axes.grid(axis="y", **GRID)
    name_ends(axes, _ends(panel, styles), LABEL_HEIGHT)


def _scale(axes: Axes, panel: Panel) -> None:
    """From zero, so that growth shows in proportion; logarithmic where the values span much.

    A logarithmic scale begins with zero only if it is among the values.
    """
    from matplotlib.ticker import EngFormatter

    unit = panel.quantity.unit
    means = [found.mean for points in panel.lines.values() for _, found in points]
    if spans_wide(means):
        least = min(mean for mean in means if mean > 0)
        axes.set_yscale("symlog", linthresh=least, linscale=0.5)
        axes.set_ylim(bottom=0.0 if min(means) == 0 else least)
        axes.set_yticks([*([0.0] if min(means) == 0 else []), *_decades(least, max(means))])
    else:
        axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(written_out() if unit is None else EngFormatter(unit=unit, sep=""))


def _decades(low: float, high: float) -> list[float]:
    """The powers of ten from low to high."""
    return [10.0**power for power in range(ceil(log10(low)), floor(log10(high)) + 1)]


def _ends(panel: Panel, styles: dict[str, Style]) -> list[End]:
    return [
        End(points[-1][1].mean, short(method, LABEL_LENGTH), styles[method])
        for method, points in panel.lines.items()
    ]
