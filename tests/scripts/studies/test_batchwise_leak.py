"""The study of test batches: each way to batch has every image once, and only a vote depends on the way."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
import torch

from scripts.studies import batchwise_leak as leak

LABELS = [0, 1, 2, 3, 0, 1, 2, 3, 0]
TASK_OF_LABEL = [0, 0, 1, 1]
GRID = ["--benchmarks", "digits", "--scale", "smoke", "--seeds", "0", "--tasks", "2"]


def flat(batches):
    return [row for batch in batches for row in batch]


def groups(batches, group_of):
    return [{group_of(LABELS[row]) for row in batch} for batch in batches]


def test_every_way_holds_every_image_once_in_batches_that_are_small_enough():
    for batches in leak.orders(LABELS, TASK_OF_LABEL, 4).values():
        assert sorted(flat(batches)) == list(range(len(LABELS)))
        assert max(map(len, batches)) <= 4


def test_a_batch_of_one_task_or_one_class_holds_no_other():
    ways = leak.orders(LABELS, TASK_OF_LABEL, 4)
    assert all(len(tasks) == 1 for tasks in groups(ways["one task per batch"], TASK_OF_LABEL.__getitem__))
    assert all(len(classes) == 1 for classes in groups(ways["one class per batch"], int))
    assert any(len(tasks) > 1 for tasks in groups(ways[leak.MIXED], TASK_OF_LABEL.__getitem__))
    assert {len(batch) for batch in ways["one image per batch"]} == {1}


def test_changes_are_counted_against_the_mixed_batches():
    predictions = {leak.MIXED: torch.tensor([0, 1, 1]), "other": torch.tensor([0, 0, 0])}
    assert list(leak.compare(predictions, torch.tensor([0, 1, 0]))) == [
        (leak.MIXED, "66.67", "0", "3"),
        ("other", "66.67", "2", "3"),
    ]


class Model(torch.nn.Module):
    """Predicts the first image of the batch for all of them."""

    def forward(self, x):
        return torch.nn.functional.one_hot(x[:1].expand(len(x)), 4).float()


class Stub:
    """As much of a strategy as a prediction needs."""

    model = Model()

    def eval_collate(self, items):
        return torch.tensor([label for _, label, *_ in items]), None

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


def test_a_model_that_mixes_the_images_of_a_batch_is_detected():
    images = leak.RowDataset(torch.zeros(len(LABELS)), LABELS, range(len(LABELS)))
    ways = leak.orders(LABELS, TASK_OF_LABEL, 4)
    labels = torch.tensor(LABELS)
    right = {name: (leak.predict(Stub(), images, ways[name]) == labels).float().mean() for name in ways}
    assert right["one class per batch"] == right["one image per batch"] == 1
    assert right[leak.MIXED] < right["one task per batch"] < 1


@pytest.fixture(scope="module")
def rows():
    with redirect_stdout(io.StringIO()) as printed:
        leak.main([*GRID, "--methods", "dualprompt"])
    lines = printed.getvalue().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_dualprompt_as_it_is_does_not_depend_on_the_batch_and_with_a_vote_is_tested_too(rows):
    names = [row[0] for row in rows]
    assert names == ["dualprompt"] * 4 + ["dualprompt, with a vote"] * 4
    assert {row[5] for row in rows[:4]} == {"0"}
    alone = {row[3]: row[4] for row in rows[:4]}["one image per batch"]
    assert rows[7][3:5] == ["one image per batch", alone]


def test_in_a_vote_the_batch_shares_one_expert():
    keys, query = torch.eye(2), torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.2, 1.0]])
    assert leak.nearest(query, keys).tolist() == [0, 1, 1]
    assert leak.majority(query, keys).tolist() == [1, 1, 1]
    assert leak.majority(query[:1], keys).tolist() == [0]


def test_without_options_it_prints_its_usage():
    with pytest.raises(SystemExit, match="--methods"):
        leak.main([])
