from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.figures.labels import (
    Box,
    Obstacle,
    along_line,
    around_point,
    place_labels,
    shorten,
    spread,
    text_width,
)

AREA = Box(0.0, 0.0, 200.0, 200.0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0.1, 20))
def test_labels_keep_their_distance_and_their_order_within_the_axes(heights: list[float], gap: float) -> None:
    placed = spread(heights, gap, 0.0, 100.0)
    room = min(gap, 100.0 / max(len(heights) - 1, 1))
    ordered = sorted(placed)
    assert all(b - a >= room - 1e-6 for a, b in pairwise(ordered))
    assert -1e-6 <= ordered[0] <= ordered[-1] <= 100 + 1e-6
    ranks = sorted(range(len(heights)), key=lambda i: (heights[i], i))
    assert ranks == sorted(range(len(heights)), key=placed.__getitem__)


def test_labels_that_do_not_collide_stay() -> None:
    assert spread([50.0, 10.0, 90.0], 5, 0, 100) == [50.0, 10.0, 90.0]


def test_labels_that_collide_share_the_move() -> None:
    assert spread([50.0, 50.0], 4, 0, 100) == pytest.approx([48.0, 52.0])


def test_a_long_name_keeps_its_ends_and_one_line() -> None:
    assert shorten("duallora:gate=none", 18) == "duallora:gate=none"
    assert shorten("duallora:calibration=none", 11) == "dual…n=none"
    assert shorten("a\nb", 11) == "a b"


def test_a_longer_text_is_wider() -> None:
    assert text_width("duallora", 10) == pytest.approx(2 * text_width("duallora", 5))
    assert text_width("duallora", 10) > text_width("ncm", 10) > 10


def test_overlap_is_the_area_that_both_cover() -> None:
    assert Box(0, 0, 10, 10).overlap(Box(8, 5, 20, 20)) == 2 * 5
    assert Box(0, 0, 10, 10).overlap(Box(10, 0, 20, 10)) == 0
    assert Box(0, 0, 10, 10).overlap(Box(30, 30, 40, 40)) == 0


def test_a_label_alone_stands_close_to_the_right_of_its_point() -> None:
    assert place_labels([around_point(100, 100, 40, 10, AREA)], []) == [Box(106, 95, 146, 105)]


def test_a_label_gives_way_to_what_is_drawn() -> None:
    mark = Box(104, 90, 150, 110)
    (box,) = place_labels([around_point(100, 100, 40, 10, AREA)], [Obstacle(mark, 20.0)])
    assert box == Box(54, 95, 94, 105)


def test_a_label_stays_within_the_area() -> None:
    for x, y in ((199, 199), (1, 1), (100, 200)):
        for place in around_point(x, y, 60, 12, AREA):
            assert AREA.left <= place.box.left < place.box.right <= AREA.right
            assert AREA.bottom <= place.box.bottom < place.box.top <= AREA.top


@given(st.lists(st.tuples(st.floats(60, 140), st.floats(60, 140)), min_size=2, max_size=6))
def test_labels_of_a_crowd_do_not_cover_each_other(points: list[tuple[float, float]]) -> None:
    """But for a sliver, which costs less than a place farther away: a hundredth of a label."""
    placed = place_labels([around_point(x, y, 50, 10, AREA) for x, y in points], [])
    assert max(a.overlap(b) for a, b in combinations(placed, 2)) < 0.01 * 50 * 10


def test_the_label_of_a_level_stands_on_it_at_the_right_unless_something_is_there() -> None:
    candidates = along_line(100, 40, 10, AREA)
    assert place_labels([candidates], []) == [Box(160, 102, 200, 112)]
    assert place_labels([candidates], [Obstacle(Box(150, 101, 200, 120), 20.0)]) == [Box(160, 88, 200, 98)]
