from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.record import Record
from reports.figures import mean_matrix, spread, styles_of, write_curves, write_matrices
from reports.groups import group

Make = Callable[..., Record]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0.1, 20))
def test_labels_keep_their_distance_their_order_and_the_axes(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, 0.0, 100.0)
    room = min(gap, 100.0 / max(len(wanted) - 1, 1))
    ordered = sorted(placed)
    assert all(b - a >= room - 1e-6 for a, b in pairwise(ordered))
    assert -1e-6 <= ordered[0] <= ordered[-1] <= 100 + 1e-6
    ranks = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert ranks == sorted(range(len(wanted)), key=placed.__getitem__)


def test_labels_that_do_not_collide_stay() -> None:
    assert spread([50.0, 10.0, 90.0], 5, 0, 100) == [50.0, 10.0, 90.0]


def test_labels_that_collide_share_the_move() -> None:
    assert spread([50.0, 50.0], 4, 0, 100) == pytest.approx([48.0, 52.0])


def test_a_method_looks_the_same_on_every_benchmark_and_unlike_the_others(make: Make) -> None:
    names = [f"method-{i}" for i in range(20)]
    groups = group([make(name, 0, benchmark) for name in names for benchmark in ("one", "two")])
    styles = styles_of(groups)
    assert sorted(styles) == sorted(names)
    assert len(set(styles.values())) == len(names)
    assert styles == styles_of(list(reversed(groups)))


def test_matrices_are_means_over_seeds(make: Make) -> None:
    first = make("a", 0, correct=[[50, None], [30, 100]], counts=[100, 200], tasks=2)
    second = make("a", 1, correct=[[70, None], [50, 60]], counts=[100, 200], tasks=2)
    (only,) = group([first, second])
    assert mean_matrix(only.rows[0]) == [[pytest.approx(60), None], [pytest.approx(40), pytest.approx(40)]]


def test_the_joint_reference_has_its_last_row_only(make: Make) -> None:
    (only,) = group([make("joint", joint=True)])
    *above, last = mean_matrix(only.rows[0])
    assert all(value is None for line in above for value in line)
    assert all(value is not None for value in last)


def test_nothing_to_draw_is_no_file(make: Make, unfinished: Make, tmp_path: Path) -> None:
    failed = unfinished("a", 0, "failed", "It broke.")
    for lonely in (failed, make("a", tasks=1)):
        (only,) = group([lonely])
        assert write_curves(only, styles_of([only]), tmp_path) == []
        assert write_matrices(only, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_names_are_not_read_as_formulas(make: Make, tmp_path: Path) -> None:
    (only,) = group([make("$\\broken{$ a_b")])
    paths = write_curves(only, styles_of([only]), tmp_path)
    assert sorted(path.suffix for path in paths) == [".png", ".svg"]
