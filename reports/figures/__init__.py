"""The figures of a group, as SVG and PNG; each function gives the files it wrote, none without the data.

All are readable at half width and in grey: every method has a marker of its own and is named where it is
drawn, and the colour map of the heat maps rises evenly in lightness.
"""

from reports.figures.curves import write_curves
from reports.figures.diagnostics import by_block, write_choices, write_diagnostics
from reports.figures.forgetting import write_forgetting
from reports.figures.growth import write_growth
from reports.figures.heatmap import hundredths
from reports.figures.labels import spread
from reports.figures.latency import write_latency
from reports.figures.matrices import mean_matrix, write_matrices
from reports.figures.style import Style, styles_of
from reports.figures.tradeoff import write_tradeoff

__all__ = [
    "Style",
    "by_block",
    "hundredths",
    "mean_matrix",
    "spread",
    "styles_of",
    "write_choices",
    "write_curves",
    "write_diagnostics",
    "write_forgetting",
    "write_growth",
    "write_latency",
    "write_matrices",
    "write_tradeoff",
]
