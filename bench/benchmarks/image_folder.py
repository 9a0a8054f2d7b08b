"""Any folder of class folders: path=FOLDER; train/ with test/ or val/ inside, or a stratified fifth as test.

A class is a sub-folder with images at any depth, and classes are numbered in the order of their names. Files
that are left out are counted (`class_folders`). Every file that is used is decoded before training starts
(`pixels.FilePixels`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.benchmarks import STRICT, register
from bench.benchmarks.base import DECODED, Benchmark, Dataset, ImageSet, Scale, make_scales
from bench.benchmarks.class_folders import Listing, list_folder
from bench.benchmarks.names import composed
from bench.benchmarks.pixels import FilePixels
from bench.benchmarks.splits import HELD_OUT, hold_out, split_by_rows, split_from_csv, unlisted
from bench.storage import expanded
from methods.errors import MissingError, UsageError, abbreviate

if TYPE_CHECKING:
    from bench.benchmarks.pixels import BoolArray, Int64Array


@dataclass(frozen=True, config=STRICT)
class ImageFolderOptions:
    """Options of `--benchmarks image-folder:...`."""

    path: Path | None = Field(None, description="the folder; relative to here or to a data root")
    split: Path | None = Field(None, description="CSV file 'split,id' that replaces the default split")


@register("image-folder")
class ImageFolder(Benchmark[ImageFolderOptions]):
    """Images are stored as squares of image_size / 0.875. Ids: paths relative to the folder."""

    default_tasks = 10
    image_size = 224
    eval_crop = 0.875
    scales = make_scales(
        smoke=Scale(train_per_class=4, test_per_class=2, epochs=1, batch_size=32),
        quick=Scale(train_per_class=50, test_per_class=20, epochs=3, batch_size=32),
        full=Scale(train_per_class=None, test_per_class=None, epochs=20, batch_size=128),
    )
    Options = ImageFolderOptions
    absent = "yours: --benchmarks image-folder:path=FOLDER"

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The folder; None without the option `path`."""
        return resolve(self.options.path, roots) if self.options.path else None

    def open(self, roots: Sequence[Path]) -> Dataset:
        if self.options.path is None:
            raise UsageError("image-folder needs its folder: --benchmarks image-folder:path=FOLDER")
        return split_pool(read_folder(existing(self.options.path, roots), roots), self.options.split)


@dataclasses.dataclass(frozen=True, eq=False)
class FolderImages:
    """The images of a folder.

    Attributes:
        classes: names of the classes.
        images: the training and the test images.
        is_test: (n,) whether an image is in the test folder; None where the folder is not divided.
        notes: sentences on files that are left out.
    """

    classes: tuple[str, ...]
    images: ImageSet
    is_test: BoolArray | None
    notes: tuple[str, ...]


def resolve(path: Path, roots: Sequence[Path]) -> Path | None:
    """The folder `path`: as it is, relative to the current folder, or below the first root that has it."""
    candidates = [expanded(path).absolute(), *(root / path for root in roots)]
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


def existing(path: Path, roots: Sequence[Path]) -> Path:
    """`resolve`, or a MissingError."""
    folder = resolve(path, roots)
    if folder is None:
        searched = ", ".join(map(str, dict.fromkeys([Path.cwd(), *roots])))
        raise MissingError(f"there is no folder '{path}', looked for in {searched}; give path=FOLDER")
    return folder


def read_folder(folder: Path, roots: Sequence[Path]) -> FolderImages:
    """The images of a folder of class folders, or of a training and a test folder with class folders.

    Args:
        roots: the first of them holds the cache of decoded images.

    Raises:
        UsageError: see `class_folders.list_folder`.
    """
    listing = list_folder(folder)
    rows = sorted(
        (composed(path.relative_to(folder).as_posix()), label, side, path)
        for side, images in enumerate(listing.images)
        for label, name in enumerate(listing.classes)
        for path in images[name]
    )
    return _folder_images(listing, rows, roots[0] / DECODED)


def _folder_images(listing: Listing, rows: list[tuple[str, int, int, Path]], cache: Path) -> FolderImages:
    import numpy as np

    ids, labels, sides, paths = zip(*rows, strict=True)
    images = ImageSet(ids, np.array(labels, np.int64), FilePixels(paths, cache))
    is_test = np.array(sides, bool) if len(listing.sides) == 2 else None
    notes = tuple(note for note in (listing.note, _note_of_domains(listing)) if note)
    return FolderImages(listing.classes, images, is_test, notes)


def _note_of_domains(listing: Listing) -> str | None:
    """A sentence where the classes look like domains: all hold the same folders, and no image beside them."""
    inside = {name: _folders_in(paths) for name, paths in listing.images[0].items()}
    first = next(iter(inside.values()))
    if len(first) < 2 or "" in first or any(names != first for names in inside.values()):
        return None
    return (
        f"each of the {len(inside)} classes ({abbreviate(listing.classes)}) holds the same {len(first)} "
        f"folders ({abbreviate(sorted(first))}); if the former are domains and the latter classes, use the "
        "benchmark domain-folder"
    )


def _folders_in(paths: Sequence[Path]) -> set[str]:
    """The names of the folders in the folder that all these images are below; "" for images in it."""
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return {(*path.relative_to(folder).parts[:-1], "")[0] for path in paths}


def split_pool(pool: FolderImages, split: Path | None) -> Dataset:
    """Divide by the external list, else as the folder is divided, else hold out a stratified fifth."""
    images, notes = pool.images, pool.notes
    if split is not None:
        rows = split_from_csv(images.ids, split)
        notes += unlisted(images.ids, rows, split)
    elif pool.is_test is not None:
        rows = _rows_where(~pool.is_test), _rows_where(pool.is_test)
    else:
        rows = hold_out(images.labels, images.ids, HELD_OUT)
    return split_by_rows(pool.classes, images, rows, notes)


def _rows_where(mask: BoolArray) -> Int64Array:
    import numpy as np

    return np.flatnonzero(mask)
