from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reports.figures import hundredths
from reports.figures.heatmap import Matrix, Scale, heat_map, numbers
from tests.reports.figures.conftest import cells


def drawn_map(matrix: Matrix, **arguments: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure()
    heat_map(figure.add_subplot(), matrix, Scale(0.0, 100.0, "accuracy (%)"), **arguments)
    return figure.axes[0]


def test_rows_go_downwards_and_a_missing_value_is_blank() -> None:
    axes = drawn_map([[10.0, None], [20.0, 30.0]], rows=["top", "bottom"], text=str)
    assert cells(axes) == [[10.0, None], [20.0, 30.0]]
    low, high = axes.get_ylim()
    assert low > high
    assert [label.get_text() for label in axes.get_yticklabels()] == ["top", "bottom"]
    assert [label.get_rotation() for label in axes.get_yticklabels()] == [0, 0]
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [
        ("10.0", (0.5, 0.5)),
        ("20.0", (0.5, 1.5)),
        ("30.0", (1.5, 1.5)),
    ]


def test_a_printed_value_has_enough_contrast_with_its_cell() -> None:
    from matplotlib.colors import to_rgb
    from seaborn.utils import relative_luminance

    matrix = [[float(10 * i + j) for j in range(10)] for i in range(10)]
    axes = drawn_map(matrix, text=str)
    colours = axes.collections[0].to_rgba(np.array(matrix)).reshape(-1, 4)
    for text, colour in zip(axes.texts, colours, strict=True):
        dark, bright = sorted(map(relative_luminance, (colour, to_rgb(text.get_color()))))
        assert (bright + 0.05) / (dark + 0.05) > 3.8
    assert {text.get_color() for text in axes.texts} == {".15", "white"}


def test_many_cells_are_a_picture_within_a_vector_file_and_few_are_paths() -> None:
    assert drawn_map([[1.0] * 11]).collections[0].get_rasterized()
    assert not drawn_map([[1.0] * 10]).collections[0].get_rasterized()


def test_the_colour_bar_is_drawn_on_the_axes_for_it() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    axes, bar = figure.subplots(2)
    heat_map(axes, [[1.0]], Scale(0.0, 2.0, "gate"), bar=bar)
    assert bar.get_xlabel() == "gate"
    assert bar.get_xlim() == (0.0, 2.0)
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("count", "labels"),
    [(1, "1"), (10, "1 2 3 4 5 6 7 8 9 10"), (12, "2 4 6 8 10 12"), (25, "1 4 7 10 13 16 19 22 25")],
)
def test_numbers_end_with_the_last_one(count: int, labels: str) -> None:
    assert len(numbers(count)) == count
    assert [label for label in numbers(count) if label] == labels.split()


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.034, ".03"), (0.5, ".50"), (0.999, "1"), (10.25, "10.25")]
)
def test_hundredths_are_short(value: float, text: str) -> None:
    assert hundredths(value) == text
