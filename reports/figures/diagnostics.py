"""What methods tell of themselves: heat maps block by task, and of tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING

from bench.record import is_list
from reports import diagnostics
from reports.figures import style
from reports.figures.grid import Room, grid, inches
from reports.figures.heatmap import (
    MOST_PRINTED,
    Matrix,
    heat_map,
    hundredths,
    number_columns,
    number_lines,
    print_values,
)
from reports.figures.labels import short
from reports.figures.style import CHARACTER_WIDTH, WIDTH
from reports.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from bench.record import DiagnosticValue

#: Inches around the panels: beside the first, between two, after the last, above for the title, and below for
#: the bar of the colours; points: small text.
LEFT, ACROSS, RIGHT, TITLE, BELOW = 0.4, 0.42, 0.12, 0.42, 0.98
SMALL = 8

#: Panels side by side.
MOST_PANELS = 4
MOST_TABLES = 2


def write_diagnostics(group: Group, folder: Path) -> list[Path]:
    """One heat map, block by experience, per method and diagnostic of every block; empty without any."""
    panels = _panels(group)
    if not panels:
        return []
    return style.saved(lambda: _diagnostics(panels), folder / f"{group.stem}-diagnostics")


def write_choices(group: Group, folder: Path) -> list[Path]:
    """A heat map, task by prompt, per method and diagnostic: the last table of one seed; empty without."""
    panels = _last_tables(group)
    if not panels:
        return []
    return style.saved(lambda: _choices(panels), folder / f"{group.stem}-choices")


# ---- diagnostics: panels of heat maps ----------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """One diagnostic of one method, as the lines of a heat map."""

    method: str
    name: str
    values: Matrix


def _told(group: Group) -> Iterator[tuple[str, str, list[DiagnosticValue]]]:
    """(method, title, entries), by diagnostic: what shares a scale stands side by side."""
    for name in diagnostics.names(group):
        for row in group.rows:
            yield row.method, diagnostics.title(name), diagnostics.means(row, name)


def _room(columns: int, height: float) -> Room:
    """For panels of this height in inches, `columns` of them over the width of a figure."""
    width = (WIDTH - LEFT - RIGHT - (columns - 1) * ACROSS) / columns
    return Room(
        width, height, across=ACROSS, down=BELOW + TITLE, left=LEFT, right=RIGHT, bottom=BELOW, top=TITLE
    )


def _draw_panel(axes: Axes, panel: _Panel, limits: tuple[float, float], across: str, down: str) -> AxesImage:
    """A heat map with the names of what goes across and down, its title, and the bar of its colours."""
    image = heat_map(axes, panel.values, *limits)
    axes.set_aspect("auto")
    number_columns(axes, len(panel.values[0]))
    number_lines(axes, len(panel.values))
    axes.set_xlabel(across, fontsize=SMALL)
    axes.set_ylabel(down, fontsize=SMALL)
    width, height = inches(axes)
    most = int(width / CHARACTER_WIDTH)
    axes.set_title(f"{short(panel.method, most)}:\n{short(panel.name, most)}", fontsize=9, loc="left", y=1.0)
    bar = axes.figure.colorbar(
        image, cax=axes.inset_axes((0, -0.55 / height, 1, 0.1 / height)), orientation="horizontal"
    )
    bar.set_label(short(panel.name, most), fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return image


def _values(panels: Iterable[_Panel]) -> list[float]:
    return [value for panel in panels for line in panel.values for value in line if value is not None]


# ---- diagnostics by block ----------------------------------------------------------------------


def _panels(group: Group) -> list[_Panel]:
    return [
        _Panel(method, title, by_block(entries))
        for method, title, entries in _told(group)
        if any(map(is_list, entries))
    ]


def by_block(entries: Sequence[DiagnosticValue]) -> list[list[float | None]]:
    """Blocks x experiences, from an entry per experience; None where there is no entry."""
    blocks = next(len(entry) for entry in entries if is_list(entry))
    columns = [entry if is_list(entry) else [None] * blocks for entry in entries]
    return [list(line) for line in zip(*columns, strict=True)]


def _diagnostics(panels: Sequence[_Panel]) -> Figure:
    columns = min(max(len(panels), 3), MOST_PANELS)
    figure, places = grid(len(panels), columns, _room(columns, height=1.5))
    for axes, panel in zip(places, panels, strict=True):
        limits = _range_of(p for p in panels if p.name == panel.name)
        _draw_panel(axes, panel, limits, "after learning task", "block")
    return figure


def _range_of(panels: Iterable[_Panel]) -> tuple[float, float]:
    """What a diagnostic spans over all methods, so that its panels share one scale."""
    values = _values(panels)
    low, high = min(values), max(values)
    return (low - 0.5, high + 0.5) if isclose(low, high, rel_tol=1e-6) else (low, high)


# ---- diagnostics as tables ---------------------------------------------------------------------


def _last_tables(group: Group) -> list[_Panel]:
    found = [
        (row.method, name, diagnostics.last_table(row, name))
        for name in diagnostics.names(group)
        for row in group.rows
    ]
    return [
        _Panel(f"{method}, seed {last[0]}", diagnostics.title(name), last[1])
        for method, name, last in found
        if last
    ]


def _choices(panels: Sequence[_Panel]) -> Figure:
    figure, places = grid(len(panels), MOST_TABLES, _room(MOST_TABLES, height=1.85))
    for axes, panel in zip(places, panels, strict=True):
        limits = _range_from_zero(panel)
        image = _draw_panel(axes, panel, limits, "prompt or component", "task of the test images")
        if max(len(panel.values), len(panel.values[0])) <= MOST_PRINTED:
            print_values(image, panel.values, hundredths)
    return figure


def _range_from_zero(panel: _Panel) -> tuple[float, float]:
    """What a panel spans, with 0 in it: shares and weights are read from there."""
    values = _values([panel])
    low, high = min(0.0, *values), max(0.0, *values)
    return low, high if high > low else 1.0
