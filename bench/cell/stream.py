"""From arrays in memory to Avalanche experiences, one per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bench.benchmarks.base import NO_DOMAIN
from bench.model import Scenario
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


def rows_by_experience(experience: Any, experiences: int) -> list[list[int]]:
    """The rows of each experience, ascending.

    Args:
        experience: (n,) the experience of each row.
    """
    return [np.flatnonzero(experience == i).tolist() for i in range(experiences)]


def columns_of(experience: Any, experiences: int) -> list[list[int]]:
    """The rows of the test images of each column of the accuracy matrix: of each experience, or of the one
    test set that all experiences share.

    Args:
        experience: (m,) the experience of each test image, see `Split.test_experience`.
    """
    if (experience == NO_DOMAIN).all():
        return [list(range(len(experience)))]
    return rows_by_experience(experience, experiences)


def experiences(images: Any, labels: Any, experience: Any) -> list[Any]:
    """Avalanche's training experiences, one per task, in order.

    Avalanche's own generators are not used, because they drop classes if the tasks cannot be of equal size,
    and reseed the global random generator.

    Args:
        experience: (n,) the experience of each image.
    """
    plain = labels.tolist()
    sets = [
        as_classification_dataset(RowDataset(shared(images), plain, rows))
        for rows in rows_by_experience(experience, int(experience.max()) + 1)
    ]
    return list(with_classes_timeline(benchmark_from_datasets(train=sets)).train_stream)


def learnt_so_far(experience: Any, task: int) -> list[int]:
    """The rows of the test images whose classes are learnt after task `task` (from 0), ascending."""
    rows: list[int] = np.flatnonzero(experience <= task).tolist()
    return rows


def all_rows(experience: Any, task: int) -> list[int]:
    """The rows of all test images: every class is known from the first domain on."""
    return list(range(len(experience)))


#: The test images that a model is evaluated on: (experience of each, task just learnt) -> rows.
EVALUATED: Mapping[Scenario, Callable[[Any, int], list[int]]] = {
    "class-incremental": learnt_so_far,
    "domain-incremental": all_rows,
}


@dataclass(frozen=True)
class TestImages:
    """The test images of an evaluation, as it goes through them.

    Attributes:
        experiences: Avalanche's experiences, one after the other; no batch is of two of them.
        rows: the row of each image among all test images, in that order.
    """

    __test__ = False  # no test of pytest's

    experiences: list[Any]
    rows: list[int]


def mixed(images: Any, labels: Any, experience: Any, rows: list[int]) -> TestImages:
    """The test images of these rows in the order of the data."""
    return TestImages([one_experience(images, labels, rows)], rows)


def task_by_task(images: Any, labels: Any, experience: Any, rows: list[int]) -> TestImages:
    """Those of the first task, those of the second, and so on: no batch has images of two tasks."""
    of_rows = experience[rows]
    by_task = [[rows[i] for i in np.flatnonzero(of_rows == task)] for task in np.unique(of_rows)]
    in_order = [row for of_task in by_task for row in of_task]
    return TestImages([one_experience(images, labels, of_task) for of_task in by_task], in_order)


#: What a batch of test images is of, by `Protocol.test_batches`.
TEST_BATCHES: dict[str, Callable[[Any, Any, Any, list[int]], TestImages]] = {
    "mixed": mixed,
    "task": task_by_task,
}


def shared(images: Any) -> Any:
    """An array as a tensor, whose rows are taken faster; whole images, which are no array, as they are."""
    return torch.from_numpy(images) if isinstance(images, np.ndarray) else images


def one_experience(images: Any, labels: Any, rows: Sequence[int]) -> Any:
    """One experience with the images of these rows, for an evaluation."""
    dataset = as_classification_dataset(RowDataset(shared(images), labels.tolist(), rows))
    return benchmark_from_datasets(test=[dataset]).streams["test"][0]
