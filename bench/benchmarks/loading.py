"""From a split to arrays: decoded images, and labels as positions in the class order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.benchmarks.base import Dataset, ImageSet
from bench.benchmarks.pixels import Shape
from bench.benchmarks.splits import Split
from bench.benchmarks.whole import WholeImages
from bench.spec import Protocol

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array, UInt8Array


#: How training images are stored: as squares of a shape, or whole, for crops from the whole image.
TrainShape = Shape | Literal["whole"]
#: The augmentations that crop at random.
CROPPING = ("crop-flip", "small-crop-flip")


def stored_shapes(protocol: Protocol) -> tuple[TrainShape, Shape]:
    """How training and test images are stored: whole only where crops are taken from the whole image."""
    if protocol.geometry == "whole":
        return ("whole" if protocol.augmentation in CROPPING else "centred"), "centred"
    shape: Shape = "squashed" if protocol.geometry == "squash" else "square"
    return shape, shape


@dataclass(frozen=True, eq=False)
class Arrays:
    """A split's images in memory, or mapped from the cache.

    Attributes:
        train_x, test_x: (n, S, S, 3) uint8; training images of any size where they are stored whole.
        train_y, test_y: (n,) int64, the position of the image's class in the class order.
        train_experience, test_experience: (n,) int64, see `Split`.
    """

    train_x: UInt8Array | WholeImages
    train_y: Int64Array
    train_experience: Int64Array
    test_x: UInt8Array
    test_y: Int64Array
    test_experience: Int64Array


def load_arrays(
    dataset: Dataset,
    split: Split,
    image_size: int,
    eval_crop: float,
    train_shape: TrainShape = "square",
    test_shape: Shape = "square",
) -> Arrays:
    """Decode the images that the split uses, and no others: on validation no test image is opened.

    Images are never enlarged here. Image files are stored at S = round(image_size / eval_crop), so that
    the central test crop has image_size pixels. Images that exist as arrays of S or fewer pixels
    (CIFAR 32, digits 8) are returned unchanged: they take a fraction of the memory, and are enlarged to the
    model's input size batch by batch. Whole images keep up to 2 S pixels on their shorter side.

    Raises:
        UsageError: naming every image that cannot be decoded.
    """
    import numpy as np

    position = np.argsort(np.array(split.class_order))
    train = dataset.train.take(split.train_rows)
    test = (dataset.test if split.test_source == "test" else dataset.train).take(split.test_rows)
    target = round(image_size / eval_crop)
    return Arrays(
        train_x=_whole(train, target) if train_shape == "whole" else _squares(train, target, train_shape),
        train_y=position[train.labels],
        train_experience=split.train_experience,
        test_x=_squares(test, target, test_shape),
        test_y=position[test.labels],
        test_experience=split.test_experience,
    )


def _whole(images: ImageSet, target: int) -> UInt8Array | WholeImages:
    return images.pixels.decode_whole(2 * target)


def _squares(images: ImageSet, target: int, shape: Shape) -> UInt8Array:
    shaped = images if shape == "square" else images.shaped(shape)
    return shaped.decode(_stored_size(images, target))


def _stored_size(images: ImageSet, target: int) -> int:
    native = images.pixels.native_size
    return target if native is None else min(native, target)
