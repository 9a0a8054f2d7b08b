"""ImageNet-R: 30,000 renditions of 200 ImageNet classes; 24,000 / 6,000 by a deterministic stratified split.

The split is this project's (`splits.hold_out`: a fifth of each class by the rank of names). CODA-Prompt's
fixed lists are another split, and InfLoRA's depends on a seed, so numbers differ by a point or two; the
option `split=FILE` takes any list. Archive: Hendrycks et al., The Many Faces of Robustness, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.benchmarks import STRICT, register
from bench.benchmarks.base import Benchmark, Dataset, Scale, make_scales
from bench.benchmarks.download import Archive, find_folder, obtain
from bench.benchmarks.image_folder import FolderImages, existing, read_folder, resolve, split_pool
from methods.errors import UsageError

ARCHIVE = Archive(
    what="ImageNet-R",
    url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
    md5="a61312130a589d0ca1a8fca1f2bd3337",
    folder="imagenet-r",
)
CLASSES, IMAGES = 200, 30_000


@dataclass(frozen=True, config=STRICT)
class ImageNetROptions:
    """Options of `--benchmarks imagenet-r:...`."""

    path: Path | None = Field(None, description="the folder, if it is not imagenet-r/ in a data root")
    split: Path | None = Field(None, description="CSV file 'split,id' that replaces the default split")
    allow_subset: bool = Field(
        False, description="open a folder with another number of classes or images: a part, or a stand-in"
    )


@register("imagenet-r")
class ImageNetR(Benchmark[ImageNetROptions]):
    """Images are stored as squares of image_size / 0.875. Ids: "n01443537/art_0.jpg"."""

    default_tasks = 10
    image_size = 224
    eval_crop = 0.875
    scales = make_scales(
        smoke=Scale(train_per_class=4, test_per_class=2, epochs=1, batch_size=32),
        quick=Scale(train_per_class=20, test_per_class=5, epochs=3, batch_size=32),
        full=Scale(train_per_class=None, test_per_class=None, epochs=50, batch_size=128),
    )
    Options = ImageNetROptions

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The folder or, before it is unpacked, the archive."""
        return resolve(self.options.path, roots) if self.options.path else find_folder(ARCHIVE, roots)

    def open(self, roots: Sequence[Path]) -> Dataset:
        path = self.options.path
        folder = existing(path, roots) if path else obtain(ARCHIVE, roots)
        pool = read_folder(folder, roots)
        if not self.options.allow_subset:
            _check_whole(folder, pool)
        return split_pool(pool, self.options.split)


def _check_whole(folder: Path, pool: FolderImages) -> None:
    classes, images = len(pool.classes), len(pool.images)
    if (classes, images) != (CLASSES, IMAGES):
        raise UsageError(
            f"{folder} has {classes} classes and {images:,} images, ImageNet-R has {CLASSES} and {IMAGES:,}; "
            "complete the folder, or run what is there with imagenet-r:allow_subset=true, which the "
            "record then says"
        )
