"""From arrays in memory to Avalanche experiences, one per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from torch import Tensor
from torch.utils.data import Dataset


class RowDataset(Dataset[tuple[Tensor, int]]):
    """uint8 images (n, H, W, 3) and labels, some rows of them. The images are shared, never copied."""

    def __init__(self, images: Tensor, labels: Sequence[int], rows: Sequence[int]) -> None:
        self.images, self.rows = images, list(rows)
        self.targets = [int(labels[row]) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[self.rows[i]], self.targets[i]


def rows_by_task(labels: Sequence[int], task_sizes: Sequence[int]) -> list[list[int]]:
    """Rows of each task; labels are positions in the class order, so a task is a contiguous range."""
    task_of = [task for task, size in enumerate(task_sizes) for _ in range(size)]
    rows: list[list[int]] = [[] for _ in task_sizes]
    for row, label in enumerate(labels):
        rows[task_of[label]].append(row)
    return rows


def experiences(images: Any, labels: Any, task_sizes: Sequence[int]) -> list[Any]:
    """Avalanche's training experiences, in order: `.dataset`, `.classes_in_this_experience`, and so on.

    Avalanche's own generators are not used: they drop the classes that do not divide evenly, and they
    reseed the global random generator.
    """
    shared, plain = torch.from_numpy(images), labels.tolist()
    sets = [
        as_classification_dataset(RowDataset(shared, plain, rows)) for rows in rows_by_task(plain, task_sizes)
    ]
    return list(with_classes_timeline(benchmark_from_datasets(train=sets)).train_stream)


def union(images: Any, labels: Any, n_classes: int) -> Any:
    """One experience with the images of the first `n_classes` classes: the input of a whole evaluation."""
    rows = rows_of_classes(labels, n_classes)
    dataset = as_classification_dataset(RowDataset(torch.from_numpy(images), labels.tolist(), rows))
    return benchmark_from_datasets(test=[dataset]).streams["test"][0]


def rows_of_classes(labels: Any, n_classes: int) -> list[int]:
    """Rows of the images of the first `n_classes` classes, ascending; the order of `union`."""
    return [row for row, label in enumerate(labels.tolist()) if label < n_classes]
