"""Experiences: every image in one of them, labels contiguous, the global random generator untouched."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.benchmarks.base import NO_DOMAIN
from bench.cell.stream import (
    TEST_BATCHES,
    columns_of,
    experiences,
    mixed,
    one_experience,
    rows_by_experience,
    task_by_task,
)
from tests.bench.conftest import arrays

#: The experience of each of six classes.
SIZES_3_2_1 = np.array([0, 0, 0, 1, 1, 2])


def test_every_image_is_in_exactly_one_experience():
    x, y = arrays(per_class=5)
    stream = experiences(x, y, SIZES_3_2_1[y])
    assert [sorted(e.classes_in_this_experience) for e in stream] == [[0, 1, 2], [3, 4], [5]]
    assert [len(e.dataset) for e in stream] == [15, 10, 5]
    assert [e.current_experience for e in stream] == [0, 1, 2]
    assert sorted(stream[1].classes_seen_so_far) == [0, 1, 2, 3, 4]


def test_classes_may_come_again():
    x, y = arrays(per_class=4)
    domain = np.arange(len(y)) // 6 % 2
    stream = experiences(x, y, domain)
    assert [sorted(e.classes_in_this_experience) for e in stream] == [list(range(6))] * 2
    rows = [[row for _, _, row, *_ in e.dataset] for e in stream]
    assert rows == [np.flatnonzero(domain == 0).tolist(), np.flatnonzero(domain == 1).tolist()]


def test_items_are_the_images_they_were_and_share_their_memory():
    x, y = arrays(per_class=2)
    first = experiences(x, y, y // 3)[0]
    image, label = first.dataset[4][:2]
    row = np.flatnonzero(y < 3)[4]
    assert label == y[row]
    assert torch.equal(image, torch.from_numpy(x[row]))
    x[row] = 7
    assert first.dataset[4][0].unique().tolist() == [7]


def test_test_images_are_gone_through_in_their_order_or_task_by_task():
    x, y = arrays(per_class=3)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).numpy()
    x, y = x[order], y[order]
    experience, rows = np.array([0, 0, 0, 1, 2, 2])[y], np.flatnonzero(y < 4).tolist()
    for way in TEST_BATCHES.values():
        tested = way(x, y, experience, rows)
        assert sorted(tested.rows) == rows
        items = [item for experience in tested.experiences for item in experience.dataset]
        assert [label for _, label, *_ in items] == y[tested.rows].tolist()
        assert all(
            torch.equal(i[0], torch.from_numpy(x[row])) for i, row in zip(items, tested.rows, strict=True)
        )
    assert mixed(x, y, experience, rows).rows == rows
    by_task = task_by_task(x, y, experience, rows).experiences
    assert [{label // 3 for _, label, *_ in e.dataset} for e in by_task] == [{0}, {1}]


def test_building_a_stream_draws_no_random_number():
    x, y = arrays(per_class=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    experiences(x, y, SIZES_3_2_1[y])
    one_experience(x, y, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 5), st.data())
def test_rows_by_experience_partition_the_rows(n, data):
    experience = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=30)))
    rows = rows_by_experience(experience, n)
    assert sorted(row for of_one in rows for row in of_one) == list(range(len(experience)))
    assert all((experience[of_one] == i).all() for i, of_one in enumerate(rows))
    assert columns_of(experience, n) == rows


def test_a_test_set_of_all_experiences_is_one_column():
    assert columns_of(np.full(4, NO_DOMAIN), 3) == [[0, 1, 2, 3]]


def test_a_batch_is_taken_where_the_images_are():
    x, y = arrays(per_class=2)
    there = torch.from_numpy(x).to("meta")
    items = [image for image, *_ in experiences(there, y, y // 3)[0].dataset]
    assert {item.device.type for item in items} == {"meta"}
    assert torch.stack(items).device.type == "meta"
