"""The number of training images of each task, and what dropping small batches means for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.benchmarks.splits import Split
from bench.cell.inputs import Inputs
from bench.spec import Cell
from methods.errors import UsageError
from methods.hyper import make_hyper
from methods.registry import METHODS


def images_per_task(split: Split) -> list[int]:
    """The number of training images of each task, in the order learnt."""
    counts: list[int] = np.bincount(split.train_experience, minlength=len(split.task_sizes)).tolist()
    return counts


def small_batches(cell: Cell, inputs: Inputs) -> str | None:
    """A sentence about tasks that dropping the last, smaller batch would leave without any; None without."""
    if not cell.protocol.drop_last:
        return None
    images = images_per_task(inputs.split(cell))
    if METHODS[cell.method.name].load().trains_jointly:
        images = [sum(images)]
    return _sentence(images, cell.protocol.batch_size)


def check_images(cell: Cell, split: Split) -> None:
    """Refuse tasks that have fewer training images than the cell's method needs.

    Raises:
        UsageError: naming the first such task.
    """
    method = METHODS[cell.method.name].load()
    least = method.least_images(make_hyper(cell.method.name, method.Hyper, cell.method.options))
    for task, images in enumerate(images_per_task(split), start=1):
        if images < least:
            raise UsageError(
                f"{cell.method.label} needs {least} training images in each task, and task {task} of "
                f"{cell.benchmark.label} has {images} at --scale {cell.scale}; take other options of the "
                "method, a larger scale or, in a class-incremental stream, fewer tasks"
            )


def _sentence(images: Sequence[int], batch: int) -> str | None:
    small = [count for count in images if count < batch]
    if not small:
        return None
    return (
        f"{len(small)} of {len(images)} tasks have fewer training images than a batch of {batch} (the "
        f"smallest has {min(small)}): each epoch of these is one smaller batch, which drop_last does not "
        "leave out; a smaller protocol.batch_size or a larger scale gives more steps"
    )
