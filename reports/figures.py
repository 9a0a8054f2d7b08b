"""The figures of a group: accuracy along the stream, accuracy matrices, diagnostics by block and as tables.

All are readable at half width and in grey: every method has a marker of its own and is named at the
end of its line, and the colour map of the heat maps rises evenly in lightness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor, isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.metrics import incremental_accuracies
from bench.record import is_list
from reports import diagnostics
from reports.groups import Group, Row
from reports.stats import Estimate, estimate
from reports.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from bench.record import DiagnosticValue

#: Paul Tol's "muted" scheme, safe for colour-blind readers; its pale yellow left out, too light for a line.
COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
LINES = ("-", "-.", ":")

INK = "#222222"

#: Inches: a figure's width, the room of a line of text, and of a character.
WIDTH = 7.2
LABEL_HEIGHT = 0.19
CHARACTER_WIDTH = 0.096

#: Characters of a name that fit beside the curves.
LABEL_LENGTH = 26
MOST_PRINTED_TASKS = 10
#: Panels side by side.
MOST_PANELS = 4
MOST_TABLES = 2
FORMATS = ("svg", "png")

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "svg.hashsalt": "duallora-bench",
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Style:
    """How a method is drawn, the same in every figure of a report."""

    colour: str
    marker: str
    line: str


def styles_of(groups: Sequence[Group]) -> dict[str, Style]:
    """A style per row name. The colour repeats after 8, the marker after 12, both together after 24."""
    names = sorted({row.method for group in groups for row in group.rows})
    return {
        name: Style(
            COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i // len(COLOURS) % len(LINES)]
        )
        for i, name in enumerate(names)
    }


def write_curves(group: Group, styles: dict[str, Style], folder: Path) -> list[Path]:
    """A_i after each experience: mean over seeds, with the band of its interval.

    Empty without a result, and for a single task, where there is nothing to follow.
    """
    rows = _drawable(group)
    if not rows:
        return []
    return _saved(lambda: _curves(rows, styles), folder / f"{group.stem}-curves")


def write_matrices(group: Group, folder: Path) -> list[Path]:
    """One heat map per method, the mean over its seeds. Empty as the curves are."""
    rows = _drawable(group)
    if not rows:
        return []
    return _saved(lambda: _matrices(rows), folder / f"{group.stem}-matrices")


def write_diagnostics(group: Group, folder: Path) -> list[Path]:
    """One heat map, block by experience, per method and diagnostic of every block; empty without any."""
    panels = _panels(group)
    if not panels:
        return []
    return _saved(lambda: _diagnostics(panels), folder / f"{group.stem}-diagnostics")


def write_choices(group: Group, folder: Path) -> list[Path]:
    """A heat map, task by prompt, per method and diagnostic: the last table of one seed; empty without."""
    panels = _last_tables(group)
    if not panels:
        return []
    return _saved(lambda: _choices(panels), folder / f"{group.stem}-choices")


def _drawable(group: Group) -> list[Row]:
    return [row for row in group.rows if row.done and row.records[0].tasks > 1]


def _saved(draw: Callable[[], Figure], stem: Path) -> list[Path]:
    """Files without a date or a version in them: equal records give equal bytes."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]
    stem.parent.mkdir(parents=True, exist_ok=True)
    with _plain_style():
        figure = draw()
        for path in paths:
            silent = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, metadata=silent)
    return paths


@contextmanager
def _plain_style() -> Iterator[None]:
    """Matplotlib's own defaults, whatever the user's settings are, and ours on top."""
    from matplotlib import rc_context
    from matplotlib.style import context

    with context("default"), rc_context(_SETTINGS):
        yield


# ---- accuracy along the stream -----------------------------------------------------------------


def _curves(rows: Sequence[Row], styles: dict[str, Style]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height = max(3.6, 1.6 + 0.25 * len(rows))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    alpha = 0.5 / max(len(rows), 4)
    ends = [_draw_row(axes, row, styles[row.method], alpha) for row in rows]
    tasks = rows[0].records[0].tasks
    axes.set_xlim(0.8, tasks + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_xlabel("tasks learnt")
    axes.set_ylabel("accuracy, mean over tasks learnt (%)")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(*_limits(axes))
    _name_ends(axes, rows, styles, ends, LABEL_HEIGHT / (height - 0.7))
    return figure


def _draw_row(axes: Axes, row: Row, style: Style, alpha: float) -> float:
    """Draw one method; the height of its end, in percent."""
    points = [(i + 1, found) for i, found in enumerate(_curve(row)) if found is not None]
    if row.last_only:
        end = points[-1][1].mean
        axes.axhline(end, color=style.colour, linestyle=(0, (5, 4)), linewidth=1.3, zorder=1.5)
    axes.plot(
        [x for x, _ in points],
        [found.mean for _, found in points],
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        linewidth=1.6,
        markersize=6.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        clip_on=False,
        zorder=3,
    )
    _draw_band(axes, points, style, alpha)
    return points[-1][1].mean


def _draw_band(axes: Axes, points: Sequence[tuple[int, Estimate]], style: Style, alpha: float) -> None:
    spread = [(x, found.mean, found.half_width) for x, found in points if found.half_width is not None]
    if len(spread) == 1:
        x, mean, half = spread[0]
        axes.errorbar(x, mean, half, color=style.colour, capsize=3, linewidth=1.2)
        return
    axes.fill_between(
        [x for x, _, _ in spread],
        [mean - half for _, mean, half in spread],
        [mean + half for _, mean, half in spread],
        color=style.colour,
        alpha=alpha,
        linewidth=0,
    )


def _curve(row: Row) -> list[Estimate | None]:
    """A_i for i = 1..T in percent, over seeds."""
    seeds = [incremental_accuracies(r.correct, r.counts) for r in row.done if r.correct and r.counts]
    return [
        estimate(None if value is None else 100 * value for value in values)
        for values in zip(*seeds, strict=True)
    ]


def _limits(axes: Axes) -> tuple[float, float]:
    """What the lines and bands span, with some air, and never beyond 0 and 100 %."""
    low, high = axes.get_ylim()
    return max(low, -1.0), min(high, 101.0)


def _name_ends(
    axes: Axes, rows: Sequence[Row], styles: dict[str, Style], ends: Sequence[float], gap: float
) -> None:
    """Each line's marker, name and final value beside its end, at least `gap` of the axes' height apart."""
    low, high = axes.get_ylim()
    heights = [(end - low) / (high - low) for end in ends]
    for row, end, y in zip(rows, heights, spread(heights, gap, 0.0, 1.0), strict=True):
        style = styles[row.method]
        axes.plot(
            [1.0, 1.045],
            [end, y],
            transform=axes.transAxes,
            color=style.colour,
            linewidth=0.9,
            marker=style.marker,
            markevery=[1],
            markersize=6,
            clip_on=False,
        )
        label = f"{_short(row.method, LABEL_LENGTH)}  {number(low + end * (high - low), 1)}"
        axes.text(1.07, y, label, transform=axes.transAxes, va="center")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions within [low, high], in the order of `wanted`, at least `gap` apart, close to `wanted`.

    The least sum of squared moves, by pooling neighbours that collide; where the room is too small for
    the gap, positions are spaced evenly.
    """
    n = len(wanted)
    gap = min(gap, (high - low) / max(n - 1, 1))
    order = sorted(range(n), key=lambda i: (wanted[i], i))
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([wanted[i] - rank * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = [_mean(pool) for pool in pools for _ in pool]
    placed = [min(max(value, low), high - (n - 1) * gap) + rank * gap for rank, value in enumerate(flat)]
    return [placed[order.index(i)] for i in range(n)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _short(name: str, most: int) -> str:
    """At most `most` characters: the middle gives way, since variants differ at the end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


# ---- accuracy matrices -------------------------------------------------------------------------


def mean_matrix(row: Row) -> list[list[float | None]]:
    """T x T percentages, the mean over the row's finished cells; None where one was not evaluated."""
    matrices = [record.accuracy_matrix for record in row.done if record.accuracy_matrix]
    return [
        [
            found.mean if (found := estimate(None if v is None else 100 * v for v in values)) else None
            for values in zip(*lines, strict=True)
        ]
        for lines in zip(*matrices, strict=True)
    ]


def _matrices(rows: Sequence[Row]) -> Figure:
    from matplotlib.figure import Figure

    matrices = [mean_matrix(row) for row in rows]
    columns = min(len(rows), 3 if len(matrices[0]) <= 5 else 2)
    lines = ceil(len(rows) / columns)
    panel = (WIDTH - 1.1) / max(columns, 2)
    size = (panel * columns + 1.1, (panel + 0.3) * lines + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    low, high = _colour_limits(matrices)
    images = [
        _draw_matrix(axes, _short(row.method, int(panel / CHARACTER_WIDTH)), matrix, low, high)
        for axes, row, matrix in zip(panels, rows, matrices, strict=False)
    ]
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    figure.supxlabel("tested on task", fontsize=10)
    figure.supylabel("after learning task", fontsize=10)
    figure.colorbar(images[0], ax=panels, label="accuracy (%)", shrink=min(0.9, 1.6 / lines), aspect=25)
    return figure


def _colour_limits(matrices: Sequence[list[list[float | None]]]) -> tuple[float, float]:
    """Full tens around all values: one scale for all panels."""
    values = [value for matrix in matrices for line in matrix for value in line if value is not None]
    low, high = 10 * floor(min(values) / 10), 10 * ceil(max(values) / 10)
    return low, max(high, low + 10)


def _draw_matrix(
    axes: Axes, title: str, matrix: list[list[float | None]], low: float, high: float
) -> AxesImage:
    image = _heat_map(axes, matrix, low, high)
    axes.set_title(title, fontsize=10, loc="left")
    if len(matrix) <= MOST_PRINTED_TASKS:
        _print_values(axes, matrix, (low + high) / 2, lambda value: f"{value:.0f}")
    return image


def _heat_map(axes: Axes, matrix: Sequence[Sequence[float | None]], low: float, high: float) -> AxesImage:
    """Lines downwards, columns to the right, both numbered from 1; None stays blank."""
    import numpy as np

    image = axes.imshow(np.array(matrix, dtype=float), cmap="cividis", vmin=low, vmax=high)
    for place, count in ((axes.set_xticks, len(matrix[0])), (axes.set_yticks, len(matrix))):
        ticks = _ticks(count)
        place(ticks, [str(i + 1) for i in ticks])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return image


def _ticks(count: int) -> range:
    """So many as can be read, the last one among them."""
    step = ceil(count / MOST_PRINTED_TASKS)
    return range((count - 1) % step, count, step)


def _print_values(
    axes: Axes, matrix: Sequence[Sequence[float | None]], middle: float, text: Callable[[float], str]
) -> None:
    size = 11 if max(len(matrix), len(matrix[0])) <= 5 else 9
    for i, line in enumerate(matrix):
        for j, value in enumerate(line):
            if value is not None:
                colour = INK if value > middle else "white"
                axes.text(j, i, text(value), ha="center", va="center", color=colour, fontsize=size)


# ---- diagnostics: panels of heat maps ----------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """One diagnostic of one method, as the lines of a heat map."""

    method: str
    name: str
    values: Sequence[Sequence[float | None]]


def _told(group: Group) -> Iterator[tuple[str, str, list[DiagnosticValue]]]:
    """(method, title, entries), by diagnostic: what shares a scale stands side by side."""
    for name in diagnostics.names(group):
        for row in group.rows:
            yield row.method, diagnostics.title(name), diagnostics.means(row, name)


def _grid(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure and its places for so many panels of this size in inches, `columns` side by side."""
    from matplotlib.figure import Figure

    lines = ceil(panels / columns)
    figure = Figure(figsize=(width * columns + 0.3, height * lines + 0.3), layout="constrained")
    places = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in places[panels:]:
        axes.set_visible(False)
    return figure, places[:panels]


def _draw_panel(
    axes: Axes, panel: _Panel, limits: tuple[float, float], width: float, across: str, down: str
) -> None:
    """A heat map with the names of what goes across and down, its title, and the bar of its colours."""
    image = _heat_map(axes, panel.values, *limits)
    axes.set_aspect("auto")
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)
    most = int(width / CHARACTER_WIDTH)
    axes.set_title(f"{_short(panel.method, most)}:\n{_short(panel.name, most)}", fontsize=9, loc="left")
    bar = axes.figure.colorbar(image, ax=axes, location="bottom", aspect=15)
    bar.set_label(_short(panel.name, most), fontsize=8)
    bar.ax.tick_params(labelsize=8)


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
    columns = min(len(panels), MOST_PANELS)
    width = (WIDTH - 0.3) / max(columns, 3)
    figure, places = _grid(len(panels), columns, width, height=2.6)
    for axes, panel in zip(places, panels, strict=True):
        limits = _range_of(p for p in panels if p.name == panel.name)
        _draw_panel(axes, panel, limits, width, "after learning task", "block")
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
    columns = min(len(panels), MOST_TABLES)
    width = (WIDTH - 0.3) / MOST_TABLES
    figure, places = _grid(len(panels), columns, width, height=3.0)
    for axes, panel in zip(places, panels, strict=True):
        limits = _range_from_zero(panel)
        _draw_panel(axes, panel, limits, width, "prompt or component", "task of the test images")
        if max(len(panel.values), len(panel.values[0])) <= MOST_PRINTED_TASKS:
            _print_values(axes, panel.values, sum(limits) / 2, hundredths)
    return figure


def _range_from_zero(panel: _Panel) -> tuple[float, float]:
    """What a panel spans, with 0 in it: shares and weights are read from there."""
    values = _values([panel])
    low, high = min(0.0, *values), max(0.0, *values)
    return low, high if high > low else 1.0


def hundredths(value: float) -> str:
    """The shortest form with two digits after the point.

    >>> [hundredths(value) for value in (0.0, 0.034, 0.5, 1.0, 10.25)]
    ['0', '.03', '.50', '1', '10.25']
    """
    text = number(value, 2)
    return text.removesuffix(".00") if text.endswith(".00") else text.removeprefix("0")
