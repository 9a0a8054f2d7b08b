from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.stats import Estimate, estimate


def test_three_seeds_by_hand() -> None:
    # standard deviation 1, t(2, 97.5 %) = 4.30265
    mean = estimate([1.0, 2.0, 3.0])
    assert mean is not None
    assert (mean.mean, mean.n) == (2.0, 3)
    assert mean.half_width == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_one_seed_has_no_interval() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, 1)


@pytest.mark.parametrize("values", [[], [None], [0.5, None]])
def test_a_missing_value_is_no_estimate(values: list[float | None]) -> None:
    assert estimate(values) is None


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_the_mean_does_not_depend_on_the_order(values: list[float]) -> None:
    forth, back = estimate(values), estimate(reversed(values))
    assert forth == back
