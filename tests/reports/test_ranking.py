from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.ranking import Leaders, Run, differences, interval, leaders, ranks, significantly_better
from reports.stats import Estimate

ORDER = (0, 1, 2)


def runs(*values: float) -> dict[Run, float]:
    return {(seed, ORDER): value for seed, value in enumerate(values)}


def test_only_runs_of_the_same_seed_and_class_order_are_compared() -> None:
    a = {(0, ORDER): 5.0, (1, ORDER): 6.0, (2, ORDER): 7.0}
    b = {(2, ORDER): 1.0, (1, (2, 1, 0)): 2.0, (0, ORDER): 3.0}
    assert differences(a, b) == {(0, ORDER): 2.0, (2, ORDER): 6.0}


def test_an_interval_decides_not_the_means() -> None:
    # differences 1, 2, 3: mean 2, half-width 4.30265 / sqrt(3) = 2.484; differences 4, 5, 6: 5 - 2.484 > 0
    assert significantly_better(runs(11, 12, 13), runs(10, 10, 10)) is False
    assert significantly_better(runs(14, 15, 16), runs(10, 10, 10)) is True
    assert significantly_better(runs(10, 10, 10), runs(14, 15, 16)) is False


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    assert significantly_better(runs(10, 50, 90), runs(9, 48.9, 89.1)) is True


def test_one_common_run_has_no_interval() -> None:
    assert significantly_better(runs(10), runs(1, 2, 3)) is None
    assert significantly_better(runs(10), {}) is None
    assert interval(Estimate(1.0, None, 1)) is None


def test_differences_that_are_all_zero_but_for_rounding_are_no_lead() -> None:
    assert significantly_better(runs(0.3, 0.3), runs(0.1 + 0.2, 0.1 + 0.2)) is False
    assert significantly_better(runs(0.1 + 0.2, 0.1 + 0.2), runs(0.3, 0.3)) is False


def test_the_best_stands_alone_if_it_is_significantly_better_than_all_others() -> None:
    columns = [runs(10, 10, 10), runs(14, 15, 16), runs(1, 2, 3)]
    assert leaders(columns, "higher") == Leaders(best=1)
    assert leaders(columns, "lower") == Leaders(best=2)


def test_those_not_significantly_worse_are_tied_with_the_best() -> None:
    columns = [runs(11, 12, 13), runs(10, 10, 10), runs(1, 1, 1)]
    assert leaders(columns, "higher") == Leaders(tied=frozenset({0, 1}))


def test_a_wide_third_is_tied_even_if_the_runner_up_is_not() -> None:
    columns = [runs(20, 20, 20), runs(19, 19, 19), runs(30, 5, 10)]
    assert leaders(columns, "higher") == Leaders(tied=frozenset({0, 2}))


def test_without_an_interval_to_the_runner_up_none_is_best() -> None:
    assert leaders([runs(20, 20), runs(19), runs(5, 5)], "higher") == Leaders()
    assert leaders([runs(20), runs(19)], "higher") == Leaders()


def test_a_single_run_further_down_does_not_take_the_lead_away() -> None:
    assert leaders([runs(20, 20), runs(19, 19), runs(5)], "higher") == Leaders(best=0)


@pytest.mark.parametrize("columns", [[], [{}], [runs(1, 2)], [runs(1, 2), {}]])
def test_nothing_to_compare_with(columns: list[dict[Run, float]]) -> None:
    assert leaders(columns, "higher") == Leaders()


def test_a_method_without_values_takes_no_part() -> None:
    assert leaders([{}, runs(5, 5), {}, runs(4, 4)], "higher") == Leaders(best=1)


def test_equal_means_share_a_rank() -> None:
    assert ranks([runs(1, 3), {}, runs(5), runs(2, 2), runs(1)]) == [2, None, 1, 2, 4]


@given(st.lists(st.lists(st.floats(0, 100), max_size=4), max_size=5))
def test_the_best_is_never_tied_and_ties_are_never_lonely(values: list[list[float]]) -> None:
    first = leaders([runs(*column) for column in values], "higher")
    assert first.best is None or not first.tied
    assert len(first.tied) != 1
