"""From a split to arrays: decoded images, and labels as positions in the class order."""

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
        train_y, test_y: (n,) int64, the position of the image's class in the class order: task 0 has labels
            0..task_sizes[0]-1, and so on.
    """

    train_x: UInt8Array
    train_y: Int64Array
    test_x: UInt8Array
    test_y: Int64Array


def load_arrays(dataset: Dataset, split: Split, image_size: int, eval_crop: float) -> Arrays:
    """Decode the images that the split uses, and no others: on validation no test image is opened.

    Images are never enlarged here. Image files are stored at S = round(image_size / eval_crop), so that
    the central test crop has image_size pixels. Images that exist as arrays of S or fewer pixels
    (CIFAR 32, digits 8) are returned unchanged: they take a fraction of the memory, and are enlarged to the
    model's input size batch by batch.

    Raises:
        UsageError: naming every image that cannot be decoded.
    """
    import numpy as np

    position = np.argsort(np.array(split.class_order))
    train = dataset.train.take(split.train_rows)
    test = (dataset.test if split.test_source == "test" else dataset.train).take(split.test_rows)
    target = round(image_size / eval_crop)
    return Arrays(
        train_x=train.decode(_stored_size(train, target)),
        train_y=position[train.labels],
        test_x=test.decode(_stored_size(test, target)),
        test_y=position[test.labels],
    )


def _stored_size(images: ImageSet, target: int) -> int:
    native = images.pixels.native_size
    return target if native is None else min(native, target)
