"""Diagnostics that methods report of themselves: heat maps of block by task, and of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isclose
from typing import TYPE_CHECKING

from bench.record import is_list
from reports import diagnostics
from reports.figures.heatmap import Matrix, Scale, bar_axes, heat_map, hundredths, known, numbers
from reports.figures.labels import shorten
from reports.figures.layout import Layout, inches, subplots
from reports.figures.style import CHARACTER_WIDTH, SMALL_FONT, WIDTH, Styles
from reports.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.record import DiagnosticValue

#: Inches around the panels: beside the first, between two, after the last, above for the title, and below for
#: the colour bar.
LEFT, ACROSS, RIGHT, TITLE, BELOW = 0.4, 0.42, 0.12, 0.42, 0.98

#: Panels side by side.
MAX_BLOCK_PANELS = 4
MAX_TABLE_PANELS = 2


@dataclass(frozen=True)
class DiagnosticPanel:
    """One diagnostic of one method as a matrix."""

    method: str
    name: str
    values: Matrix


def draw_diagnostics(group: Group, styles: Styles) -> Figure | None:
    """One heat map, block by task, per method and diagnostic of every block; None without any."""
    panels = [
        DiagnosticPanel(row.method, diagnostics.title(name), by_block(entries))
        for name in diagnostics.names(group)  # first by diagnostic: panels with one scale are side by side
        for row in group.rows
        if any(map(is_list, entries := diagnostics.means(row, name)))
    ]
    return _block_figure(panels) if panels else None


def draw_choices(group: Group, styles: Styles) -> Figure | None:
    """A heat map, task by prompt, per method and diagnostic: the last table of one seed; None without any."""
    panels = [
        DiagnosticPanel(f"{row.method}, seed {seed}", diagnostics.title(name), table)
        for name in diagnostics.names(group)
        for row in group.rows
        for seed, table in [diagnostics.last_table(row, name) or (None, None)]
        if table
    ]
    return _table_figure(panels) if panels else None


def by_block(entries: Sequence[DiagnosticValue]) -> list[list[float | None]]:
    """Blocks x tasks, from an entry per task; None where there is no entry."""
    blocks = next(len(entry) for entry in entries if is_list(entry))
    columns = [entry if is_list(entry) else [None] * blocks for entry in entries]
    return [list(line) for line in zip(*columns, strict=True)]


# ---- drawing -----------------------------------------------------------------------------------


def _block_figure(panels: Sequence[DiagnosticPanel]) -> Figure:
    columns = min(max(len(panels), 3), MAX_BLOCK_PANELS)
    figure, axes_of_panels = subplots(len(panels), columns, _layout(columns, height=1.5))
    for axes, panel in zip(axes_of_panels, panels, strict=True):
        scale = _common_scale([other for other in panels if other.name == panel.name])
        _draw(axes, panel, scale)
        axes.set_xlabel("after learning task", fontsize=SMALL_FONT)
        axes.set_ylabel("block", fontsize=SMALL_FONT)
    return figure


def _table_figure(panels: Sequence[DiagnosticPanel]) -> Figure:
    figure, axes_of_panels = subplots(len(panels), MAX_TABLE_PANELS, _layout(MAX_TABLE_PANELS, height=1.85))
    for axes, panel in zip(axes_of_panels, panels, strict=True):
        _draw(axes, panel, _scale_from_zero(panel), hundredths)
        axes.set_xlabel("prompt, component or expert", fontsize=SMALL_FONT)
        axes.set_ylabel("task of the test images", fontsize=SMALL_FONT)
    return figure


def _layout(columns: int, height: float) -> Layout:
    """For panels of this height in inches, `columns` of them over the width of a figure."""
    width = (WIDTH - LEFT - RIGHT - (columns - 1) * ACROSS) / columns
    return Layout(
        width, height, across=ACROSS, down=BELOW + TITLE, left=LEFT, right=RIGHT, bottom=BELOW, top=TITLE
    )


def _draw(
    axes: Axes, panel: DiagnosticPanel, scale: Scale, text: Callable[[float], str] | None = None
) -> None:
    """A heat map with numbered rows and columns, its title, and its colour bar below."""
    width, height = inches(axes)
    bar = bar_axes(axes.inset_axes((0, -0.55 / height, 1, 0.1 / height)))
    rows, columns = numbers(len(panel.values)), numbers(len(panel.values[0]))
    heat_map(axes, panel.values, scale, rows, columns, text, bar)
    most = int(width / CHARACTER_WIDTH)
    bar.set_xlabel(shorten(scale.label, most), fontsize=SMALL_FONT)
    title = f"{shorten(panel.method, most)}:\n{shorten(panel.name, most)}"
    axes.set_title(title, fontsize=9, loc="left", y=1.0)


def _common_scale(panels: Sequence[DiagnosticPanel]) -> Scale:
    """The span of a diagnostic over all methods, so that its panels share one scale."""
    values = known(panel.values for panel in panels)
    low, high = min(values), max(values)
    if isclose(low, high, rel_tol=1e-6):
        low, high = low - 0.5, high + 0.5
    return Scale(low, high, panels[0].name)


def _scale_from_zero(panel: DiagnosticPanel) -> Scale:
    """The span of a panel and 0: shares and weights are read from there."""
    values = known([panel.values])
    low, high = min(0.0, *values), max(0.0, *values)
    return Scale(low, high if high > low else 1.0, panel.name)
