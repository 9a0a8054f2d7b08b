"""The style of each method, the theme of all figures, and how a figure is saved."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.groups import Group, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Paul Tol's "muted" scheme, safe for colour-blind readers, without its pale yellow, which is too light for
#: lines; instead the yellow of his "high-contrast" scheme, and black. Seaborn's "colorblind" has two colours
#: too pale for lines, and its closest pairs are closer under simulated protanopia and deuteranopia.
COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499"),
    *("#DDAA33", "#000000"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
LINES = ("-", "-.", ":")

INK = ".15"  # seaborn's colour of text
FAINT = "#888888"

#: Points: the size of text, and of text in small panels.
FONT = 10
SMALL_FONT = 8

#: Inches: a figure's width, the room of a line of text, and of a character.
WIDTH = 7.2
LABEL_HEIGHT = 0.19
CHARACTER_WIDTH = 0.085

#: File formats, and the metadata left out of each: without dates and versions equal records give equal bytes.
_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}

#: What differs from seaborn's theme "ticks" in the context "paper". The font comes with matplotlib.
_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
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


#: The style of each method, by the name of its row.
Styles = Mapping[str, Style]


def styles_of(groups: Sequence[Group]) -> dict[str, Style]:
    """A style per row name. The colour repeats after 10, the marker after 12, both together after 60."""
    names = sorted({row.method for group in groups for row in group.rows})
    return {
        name: Style(
            COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i // len(COLOURS) % len(LINES)]
        )
        for i, name in enumerate(names)
    }


def theme() -> AbstractContextManager[None]:
    """The settings that figures are drawn and saved under, whatever the user's own settings are."""
    import seaborn as sns
    from matplotlib.style import context

    paper = sns.plotting_context("paper", font_scale=FONT / 9.6)  # whose text has 9.6 points
    return context(["default", sns.axes_style("ticks"), paper, _SETTINGS])


def file_contents(figure: Figure, stem: str) -> dict[str, bytes]:
    """The figure as the files `stem`.svg and `stem`.png, by name."""
    return {f"{stem}.{kind}": _content(figure, kind) for kind in _METADATA}


def _content(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=_METADATA[kind])
    return file.getvalue()


def rows_over_tasks(group: Group) -> list[Row]:
    """The rows with a result; empty for a single task, where nothing changes from task to task."""
    return [row for row in group.rows if row.done and row.records[0].tasks > 1]


def set_title(axes: Axes, text: str, pad: float = 6.0, x: float = 0.0) -> None:
    """A title at the upper left; `pad` in points, `x` in widths of the axes."""
    axes.set_title(text, loc="left", x=x, y=1.0, pad=pad)  # a fixed y is drawn faster
