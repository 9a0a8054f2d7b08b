"""Which tasks are smaller than a batch, and what plan and record say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.benchmarks.base import Dataset, ImageSet, Scale
from bench.benchmarks.pixels import ArrayPixels
from bench.cell.manifest import manifest_of
from bench.cell.steps import images_per_task, small_batches
from bench.spec import Cell
from tests.bench.benchmarks.conftest import class_split
from tests.bench.cell.conftest import CONTEXT, plan_cell

#: Three tasks of digits at smoke scale, 12 training images of each class: 4, 3 and 3 classes.
SIZES = [48, 36, 36]


def dropping(cell: Cell, batch: int, **changes: Any) -> Cell:
    fields = {"drop_last": True, "batch_size": batch, **changes}
    return cell.model_copy(update={"protocol": cell.protocol.model_copy(update=fields)})


def test_the_images_of_each_task_are_those_that_it_trains_on(tmp_path: Path) -> None:
    cell, inputs = plan_cell("finetune", tmp_path)
    arrays = inputs.images(cell)
    ends = np.cumsum(cell.task_sizes)
    of_task = np.searchsorted(ends, arrays.train_y, side="right")
    assert images_per_task(inputs.split(cell)) == np.bincount(of_task).tolist() == SIZES


def test_tasks_are_cut_in_the_class_order() -> None:
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    ids = tuple(map(str, range(10)))
    images = ImageSet(ids, labels, ArrayPixels(np.zeros((10, 2, 2, 3), np.uint8)))
    dataset = Dataset(("a", "b", "c"), images, images)
    scale = Scale(train_per_class=None, test_per_class=None, epochs=1, batch_size=1)
    split = class_split(dataset, tasks=2, scale=scale, eval_on="test", order=(2, 0, 1))
    assert images_per_task(split) == [7, 3]


@pytest.mark.parametrize(
    ("method", "batch", "words"),
    [
        ("finetune", 36, None),
        ("finetune", 37, "2 of 3 tasks have fewer training images than a batch of 37 (the smallest has 36)"),
        ("finetune", 49, "3 of 3 tasks"),
        ("joint", 49, None),
        ("joint", 121, "1 of 1 tasks have fewer training images than a batch of 121 (the smallest has 120)"),
    ],
)
def test_tasks_smaller_than_a_batch_are_named_in_the_record(
    method: str, batch: int, words: str | None, tmp_path: Path
) -> None:
    planned, inputs = plan_cell(method, tmp_path)
    cell = dropping(planned, batch)
    sentence = small_batches(cell, inputs)
    warnings = manifest_of(cell, inputs, CONTEXT, "2025-01-31T12:00:00+00:00").warnings
    assert [w for w in warnings if "drop_last" in w] == ([sentence] if sentence else [])
    assert (sentence or "").startswith(words or "")
    assert (sentence is None) == (words is None)


def test_where_no_batch_is_dropped_nothing_is_said(tmp_path: Path) -> None:
    cell, inputs = plan_cell("finetune", tmp_path)
    assert small_batches(dropping(cell, 49, drop_last=False), inputs) is None
