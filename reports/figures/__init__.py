"""The figures of a group, each as SVG and PNG.

All are readable at half width and in grey: every method has its own marker and is named where it is drawn,
and the colour map of the heat maps rises evenly in lightness.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from reports.figures.curves import draw_curves
from reports.figures.diagnostics import by_block, draw_choices, draw_diagnostics
from reports.figures.forgetting import draw_forgetting
from reports.figures.growth import draw_growth
from reports.figures.heatmap import hundredths
from reports.figures.labels import spread
from reports.figures.latency import draw_latency
from reports.figures.matrices import draw_matrices, mean_matrix
from reports.figures.style import Style, Styles, file_contents, styles_of, theme
from reports.figures.tradeoff import draw_tradeoff
from reports.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DRAWERS",
    "Style",
    "by_block",
    "hundredths",
    "mean_matrix",
    "render_figures",
    "spread",
    "styles_of",
    "theme",
]

#: By kind: what draws the figure of a group, or gives None where the group has no data for it.
DRAWERS: dict[str, Callable[[Group, Styles], Figure | None]] = {
    "curves": draw_curves,
    "tradeoff": draw_tradeoff,
    "forgetting": draw_forgetting,
    "matrices": draw_matrices,
    "growth": draw_growth,
    "latency": draw_latency,
    "diagnostics": draw_diagnostics,
    "choices": draw_choices,
}


def render_figures(group: Group, styles: Styles) -> dict[str, dict[str, bytes]]:
    """The files of each kind of figure, by name; none where the group has no data for it."""
    with theme():
        return {
            kind: file_contents(figure, f"{group.stem}-{kind}") if figure else {}
            for kind, draw in DRAWERS.items()
            for figure in [draw(group, styles)]
        }
