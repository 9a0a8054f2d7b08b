"""From a split to arrays: decoded images and the labels as learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.benchmarks.base import Dataset, ImageSet
from bench.benchmarks.splits import Split

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array, UInt8Array


@dataclass(frozen=True, eq=False)
class Arrays:
    """A split's images in memory, or mapped from the cache.

    Attributes:
        train_x, test_x: (n, S, S, 3) uint8.
        train_y, test_y: (n,) int64, the class' position in the class order: task 0 has labels
            0..task_sizes[0]-1, and so on.
        task_of_class: (C,) int64, the task that brings the class at this position.
    """

    train_x: UInt8Array
    train_y: Int64Array
    test_x: UInt8Array
    test_y: Int64Array
    task_of_class: Int64Array


def load_arrays(source: Dataset, split: Split, image_size: int, eval_crop: float) -> Arrays:
    """Decode what the split uses, and nothing else: on validation the test images stay closed.

    Images are never enlarged here. Image files are stored at S = round(image_size / eval_crop), so that
    the central test crop has image_size pixels. Images that exist as arrays of S or fewer pixels
    (CIFAR 32, digits 8) are delivered as they are: they take a fraction of the memory, and the model's
    input size is reached batch by batch.

    Raises:
        UsageError: naming every image that cannot be decoded.
    """
    import numpy as np

    position = np.argsort(np.array(split.class_order))
    train = source.train.take(split.train_rows)
    test = (source.test if split.test_side == "test" else source.train).take(split.test_rows)
    wanted = round(image_size / eval_crop)
    return Arrays(
        train_x=train.decode(_stored_size(train, wanted)),
        train_y=position[train.labels],
        test_x=test.decode(_stored_size(test, wanted)),
        test_y=position[test.labels],
        task_of_class=np.repeat(np.arange(len(split.task_sizes)), split.task_sizes),
    )


def _stored_size(side: ImageSet, wanted: int) -> int:
    native = side.pixels.native_size
    return wanted if native is None else min(native, wanted)
