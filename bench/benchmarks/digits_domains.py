"""The digits of `digits` drawn in five ways: as they are, thick, inverted, rotated, on squares; embedded.

Each training digit is drawn in one of the ways, each test digit in all of them. So no digit is trained on in
one domain and tested on, or held out for validation, in another, and all domains have the same test digits.
Which digits are test images is decided by `digits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.benchmarks import register
from bench.benchmarks.base import Benchmark, Dataset, ImageSet, NoOptions, Scale, make_scales
from bench.benchmarks.digits import Digits
from bench.benchmarks.pixels import ArrayPixels
from methods.errors import UsageError

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array, UInt8Array

#: `Dataset.sha256` of the drawn digits.
SHA256 = "6b3fd4af2be231b454a8c9e551bbec289f0837f1e774d7ce34c5671d14db52c2"
LIGHTEST = 255
SQUARES = 128  # grey value of the squares on the ground, of one pixel each


def plain(digits: UInt8Array) -> UInt8Array:
    """Light strokes on a dark ground, as `digits` has them."""
    return digits


def thick(digits: UInt8Array) -> UInt8Array:
    """Each pixel becomes the lightest of the 3x3 pixels around it."""
    import numpy as np

    padded, side = np.pad(digits, ((0, 0), (1, 1), (1, 1), (0, 0))), digits.shape[1]
    around = [padded[:, y : y + side, x : x + side] for y in range(3) for x in range(3)]
    thickened: UInt8Array = np.maximum.reduce(around)
    return thickened


def inverted(digits: UInt8Array) -> UInt8Array:
    """Dark strokes on a light ground."""
    return LIGHTEST - digits


def rotated(digits: UInt8Array) -> UInt8Array:
    """A quarter turn against the clock; a half turn would make nines of sixes."""
    import numpy as np

    return np.rot90(digits, axes=(1, 2))


def checkered(digits: UInt8Array) -> UInt8Array:
    """Strokes on a ground of dark and grey squares: each pixel is the lighter of stroke and ground."""
    import numpy as np

    positions = np.arange(digits.shape[1])
    ground = ((positions[:, None] + positions) % 2 * SQUARES).astype(np.uint8)
    on_ground: UInt8Array = np.maximum(digits, ground[..., None])
    return on_ground


#: The domains, in their order: (n, 8, 8, 3) uint8 -> the same digits in this domain.
DOMAINS: Mapping[str, Callable[[UInt8Array], UInt8Array]] = {
    function.__name__: function for function in (plain, thick, inverted, rotated, checkered)
}


@register("digits-domains")
class DigitsDomains(Benchmark[NoOptions]):
    """Five domains of about 288 training images and 359 test images each. Ids: "rotated/0017"."""

    pinned = True
    scenarios = ("domain-incremental", "class-incremental")
    default_tasks = 5
    image_size = 32
    augmentation = "none"
    backbone = "micro_vit_patch4_32.cifar100"
    scales = make_scales(
        smoke=Scale(train_per_class=4, test_per_class=2, epochs=1, batch_size=16),
        quick=Scale(train_per_class=None, test_per_class=None, epochs=3, batch_size=32),
        full=Scale(train_per_class=None, test_per_class=None, epochs=3, batch_size=32),
    )

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The file of `digits`."""
        return Digits(NoOptions()).locate(roots)

    def count_domains(self, roots: Sequence[Path]) -> int:
        return len(DOMAINS)

    def open(self, roots: Sequence[Path]) -> Dataset:
        digits = Digits(NoOptions()).open(roots)
        train = [digits.train.take(rows) for rows in _dealt(digits.train.labels)]
        test = [digits.test] * len(DOMAINS)
        dataset = Dataset(digits.classes, _drawn(train), _drawn(test), domains=tuple(DOMAINS))
        if dataset.sha256 != SHA256:
            raise UsageError(
                f"the drawn digits have sha256 {dataset.sha256} here, not {SHA256}: numpy draws "
                "them in another way; install a released version of numpy, and report this"
            )
        return dataset


def _dealt(labels: Int64Array) -> list[Int64Array]:
    """The rows of each domain: every class is dealt out to the domains, one image after the other.

    The first image of class c goes to domain c, so that what is left over does not all go to the first.
    """
    import numpy as np

    domain = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        domain[of_class] = (np.arange(of_class.sum()) + label) % len(DOMAINS)
    return [np.flatnonzero(domain == number) for number in range(len(DOMAINS))]


def _drawn(sets: Sequence[ImageSet]) -> ImageSet:
    """The digits of each set in its domain; there is one set for each."""
    import numpy as np

    ids = tuple(f"{name}/{digit}" for name, images in zip(DOMAINS, sets, strict=True) for digit in images.ids)
    pixels = [draw(images.pixels.decode(8)) for draw, images in zip(DOMAINS.values(), sets, strict=True)]
    return ImageSet(
        ids,
        np.concatenate([images.labels for images in sets]),
        ArrayPixels(np.concatenate(pixels)),
        np.repeat(np.arange(len(sets)), [len(images) for images in sets]),
    )
