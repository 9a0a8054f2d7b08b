"""How methods look, matplotlib's settings, and the saving of a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.groups import Group, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Paul Tol's "muted" scheme, safe for colour-blind readers. Its pale yellow, too light for a line, gives way
#: to the yellow of his "high-contrast" scheme and to black.
COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499"),
    *("#DDAA33", "#000000"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
LINES = ("-", "-.", ":")

INK = "#222222"
FAINT = "#888888"
GRID: dict[str, Any] = {"color": "#DDDDDD", "linewidth": 0.6}

#: Points: the size of text.
FONT = 10

#: Inches: a figure's width, the room of a line of text, and of a character.
WIDTH = 7.2
LABEL_HEIGHT = 0.19
CHARACTER_WIDTH = 0.085

FORMATS = ("svg", "png")

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
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
    """A style per row name. The colour repeats after 10, the marker after 12, both together after 60."""
    names = sorted({row.method for group in groups for row in group.rows})
    return {
        name: Style(
            COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i // len(COLOURS) % len(LINES)]
        )
        for i, name in enumerate(names)
    }


def followed(group: Group) -> list[Row]:
    """The rows with a result; none for a single task, where there is nothing to follow."""
    return [row for row in group.rows if row.done and row.records[0].tasks > 1]


def set_title(axes: Axes, text: str, pad: float = 6.0, x: float = 0.0) -> None:
    """At the upper left; `pad` in points, `x` in widths of the axes."""
    axes.set_title(text, fontsize=FONT, loc="left", x=x, y=1.0, pad=pad)  # y: a fixed place is drawn faster


def saved(draw: Callable[[], Figure], stem: Path) -> list[Path]:
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
