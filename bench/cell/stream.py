"""From arrays in memory to Avalanche experiences, one per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from methods.avalanche_parts import as_classification_dataset, benchmark_from_datasets, with_classes_timeline


class RowDataset(Dataset[tuple[Tensor, int, int]]):
    """Some rows of uint8 images (H, W, 3), their labels, and which rows. Images are shared, not copied."""

    def __init__(self, images: Any, labels: Sequence[int], rows: Sequence[int]) -> None:
        self.images, self.rows = images, list(rows)
        self.targets = [int(labels[row]) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        return torch.as_tensor(self.images[self.rows[i]]), self.targets[i], self.rows[i]


def tasks_of_labels(task_sizes: Sequence[int]) -> list[int]:
    """The task of each label, by label."""
    return [task for task, size in enumerate(task_sizes) for _ in range(size)]


def rows_by_task(labels: Sequence[int], task_sizes: Sequence[int]) -> list[list[int]]:
    """The rows of each task. Labels are positions in the class order, so those of a task are a range."""
    task_of = tasks_of_labels(task_sizes)
    rows: list[list[int]] = [[] for _ in task_sizes]
    for row, label in enumerate(labels):
        rows[task_of[label]].append(row)
    return rows


def experiences(images: Any, labels: Any, task_sizes: Sequence[int]) -> list[Any]:
    """Avalanche's training experiences, one per task, in order.

    Avalanche's own generators are not used, because they drop classes if the tasks cannot be of equal size,
    and reseed the global random generator.
    """
    plain = labels.tolist()
    sets = [
        as_classification_dataset(RowDataset(shared(images), plain, rows))
        for rows in rows_by_task(plain, task_sizes)
    ]
    return list(with_classes_timeline(benchmark_from_datasets(train=sets)).train_stream)


@dataclass(frozen=True)
class SeenImages:
    """The test images of the tasks seen so far, as an evaluation goes through them.

    Attributes:
        experiences: Avalanche's experiences, one after the other; no batch is of two of them.
        rows: the row of each image among all test images, in that order.
    """

    experiences: list[Any]
    rows: list[int]


def mixed(images: Any, labels: Any, task_sizes: Sequence[int]) -> SeenImages:
    """The test images of the tasks in the order of the data."""
    rows = rows_of_classes(labels, sum(task_sizes))
    return SeenImages([_experience(images, labels, rows)], rows)


def task_by_task(images: Any, labels: Any, task_sizes: Sequence[int]) -> SeenImages:
    """The test images of the first task, those of the second, and so on: no batch has images of two tasks."""
    seen = rows_of_classes(labels, sum(task_sizes))
    by_task = [[seen[i] for i in of_task] for of_task in rows_by_task(labels[seen].tolist(), task_sizes)]
    rows = [row for of_task in by_task for row in of_task]
    return SeenImages([_experience(images, labels, of_task) for of_task in by_task], rows)


#: What a batch of test images is of, by `Protocol.test_batches`.
TEST_BATCHES: dict[str, Callable[[Any, Any, Sequence[int]], SeenImages]] = {
    "mixed": mixed,
    "task": task_by_task,
}


def shared(images: Any) -> Any:
    """An array as a tensor, whose rows are taken faster; whole images, which are no array, as they are."""
    return torch.from_numpy(images) if isinstance(images, np.ndarray) else images


def union(images: Any, labels: Any, n_classes: int) -> Any:
    """One experience with all images of the first `n_classes` classes, for an evaluation."""
    return _experience(images, labels, rows_of_classes(labels, n_classes))


def _experience(images: Any, labels: Any, rows: Sequence[int]) -> Any:
    """One experience with the images of these rows, for an evaluation."""
    dataset = as_classification_dataset(RowDataset(shared(images), labels.tolist(), rows))
    return benchmark_from_datasets(test=[dataset]).streams["test"][0]


def rows_of_classes(labels: Any, n_classes: int) -> list[int]:
    """The rows of the images of the first `n_classes` classes, ascending; `union` has the same order."""
    return [row for row, label in enumerate(labels.tolist()) if label < n_classes]
