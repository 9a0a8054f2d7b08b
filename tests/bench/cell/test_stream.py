"""Experiences: every image in one of them, labels contiguous, the global random generator untouched."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.cell.stream import (
    TEST_BATCHES,
    experiences,
    mixed,
    rows_by_task,
    task_by_task,
    union,
)
from tests.bench.conftest import arrays


def test_every_image_is_in_exactly_one_experience_and_tasks_are_contiguous_ranges():
    x, y = arrays(per_class=5)
    stream = experiences(x, y, (3, 2, 1))
    assert [sorted(e.classes_in_this_experience) for e in stream] == [[0, 1, 2], [3, 4], [5]]
    assert [len(e.dataset) for e in stream] == [15, 10, 5]
    assert [e.current_experience for e in stream] == [0, 1, 2]
    assert sorted(stream[1].classes_seen_so_far) == [0, 1, 2, 3, 4]


def test_items_are_the_images_they_were_and_share_their_memory():
    x, y = arrays(per_class=2)
    first = experiences(x, y, (3, 3))[0]
    image, label = first.dataset[4][:2]
    row = rows_by_task(y.tolist(), (3, 3))[0][4]
    assert label == y[row]
    assert torch.equal(image, torch.from_numpy(x[row]))
    x[row] = 7
    assert first.dataset[4][0].unique().tolist() == [7]


def test_the_union_holds_the_first_classes_only():
    x, y = arrays(per_class=3)
    labels = [label for _, label, *_ in union(x, y, 4).dataset]
    assert sorted(set(labels)) == [0, 1, 2, 3]
    assert len(labels) == 12


def test_test_images_are_gone_through_in_their_order_or_task_by_task():
    x, y = arrays(per_class=3)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).numpy()
    x, y = x[order], y[order]
    for way in TEST_BATCHES.values():
        seen = way(x, y, (3, 1))
        assert sorted(seen.rows) == [row for row, label in enumerate(y) if label < 4]
        items = [item for experience in seen.experiences for item in experience.dataset]
        assert [label for _, label, *_ in items] == y[seen.rows].tolist()
        assert all(
            torch.equal(i[0], torch.from_numpy(x[row])) for i, row in zip(items, seen.rows, strict=True)
        )
    assert mixed(x, y, (3, 1)).rows == sorted(mixed(x, y, (3, 1)).rows)
    tasks = [{label // 3 for _, label, *_ in e.dataset} for e in task_by_task(x, y, (3, 1)).experiences]
    assert tasks == [{0}, {1}]


def test_building_a_stream_draws_no_random_number():
    x, y = arrays(per_class=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    experiences(x, y, (2, 4))
    union(x, y, 2)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_rows_by_task_partitions_the_rows(sizes, data):
    labels = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=30))
    rows = rows_by_task(labels, sizes)
    assert sorted(row for task in rows for row in task) == list(range(len(labels)))
    for task, members in enumerate(rows):
        low = sum(sizes[:task])
        assert all(low <= labels[row] < low + sizes[task] for row in members)


def test_a_batch_is_taken_where_the_images_are():
    x, y = arrays(per_class=2)
    there = torch.from_numpy(x).to("meta")
    items = [image for image, *_ in experiences(there, y, (3, 3))[0].dataset]
    assert {item.device.type for item in items} == {"meta"}
    assert torch.stack(items).device.type == "meta"
