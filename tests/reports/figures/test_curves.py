from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from bench.record import Record
from reports.groups import group
from tests.reports.figures.conftest import constant

Make = Callable[..., Record]


def test_a_line_is_named_at_its_end_with_its_last_value(make: Make, drawn: Any) -> None:
    cells = [make("a", seed, skill=0.9) for seed in (0, 1)]
    (axes,) = drawn("curves", group(cells)[0]).axes
    final = 100 * fmean(cell.metrics["accuracy"] for cell in cells if cell.metrics)  # type: ignore[misc]
    assert [text.get_text() for text in axes.texts] == [f"a  {final:.1f}"]
    assert axes.lines[0].get_xydata()[-1].tolist() == pytest.approx([3, final])


def test_the_dash_of_joint_is_no_line_through_tasks_it_was_not_evaluated_on(make: Make, drawn: Any) -> None:
    (axes,) = drawn("curves", group([make("joint", joint=True), make("a")])[0]).axes
    spans = [
        path.vertices[:, 0].tolist()
        for c in axes.collections
        for path in c.get_paths()
        if len(path.vertices) == 2 and np.isfinite(path.vertices).all()
    ]
    assert spans == [[2.5, 3.2]]


def test_a_wide_band_ends_at_what_an_accuracy_can_be(make: Make, drawn: Any) -> None:
    cells = [make("a", seed, **constant(percent)) for seed, percent in enumerate((99, 60))]
    (axes,) = drawn("curves", group(cells)[0]).axes
    assert axes.get_ylim() == (-1.0, 101.0)
