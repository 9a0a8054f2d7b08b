"""Any folder of class folders: path=FOLDER; train/ with test/ or val/ inside, or a stratified fifth as test.

A class is a sub-folder with images at any depth, and classes are numbered in the order of their names. Every
file that is used is decoded before training starts (`pixels.FilePixels`).
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
from bench.benchmarks.base import Benchmark, Dataset, ImageSet, Scale, make_scales
from bench.benchmarks.pixels import FilePixels
from bench.benchmarks.splits import HELD_OUT, hold_out, split_by_rows, split_from_csv
from methods.errors import MissingError, UsageError, abbreviate

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


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
        presplit: whether the folder is divided into train/ and test/ already.
    """

    classes: tuple[str, ...]
    images: ImageSet
    presplit: bool


def resolve(path: Path, roots: Sequence[Path]) -> Path | None:
    """The folder `path`: as it is, relative to the current folder, or below the first root that has it."""
    candidates = [path.expanduser().absolute(), *(root / path for root in roots)]
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


def existing(path: Path, roots: Sequence[Path]) -> Path:
    """`resolve`, or a MissingError."""
    folder = resolve(path, roots)
    if folder is None:
        searched = ", ".join(map(str, dict.fromkeys([Path.cwd(), *roots])))
        raise MissingError(f"there is no folder '{path}', looked for in {searched}; give path=FOLDER")
    return folder


def read_folder(folder: Path, roots: Sequence[Path]) -> FolderImages:
    """List a folder of class folders, or of train/ and test/ (or val/) with class folders.

    Args:
        roots: the first of them holds the cache of decoded images.

    Raises:
        UsageError: no classes, a class without images, or train/ and test/ with different classes.
    """
    parts = _parts(folder)
    listings = [_images_by_class(part) for part in parts]
    if len(parts) == 2:
        _check_same_classes(parts, listings)
    ids, labels, paths = _table(folder, listings)
    images = ImageSet(ids, labels, FilePixels(paths, roots[0] / "decoded"))
    return FolderImages(tuple(listings[0]), images, presplit=len(parts) == 2)


def split_pool(pool: FolderImages, split: Path | None) -> Dataset:
    """Divide by the external list, else as the folder is divided, else hold out a stratified fifth."""
    images = pool.images
    if split is not None:
        rows = split_from_csv(images.ids, split)
    elif pool.presplit:
        rows = _rows_by_folder(images.ids)
    else:
        rows = hold_out(images.labels, images.ids, HELD_OUT)
    return split_by_rows(pool.classes, images, rows)


def _rows_by_folder(ids: tuple[str, ...]) -> tuple[Int64Array, Int64Array]:
    import numpy as np

    is_train = np.array([name.startswith("train/") for name in ids])
    return np.flatnonzero(is_train), np.flatnonzero(~is_train)


def _parts(folder: Path) -> tuple[Path, ...]:
    """(train, test) if the folder is divided already, else the folder itself."""
    train = folder / "train"
    for test in (folder / "test", folder / "val"):
        if train.is_dir() and test.is_dir():
            return train, test
    return (folder,)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name))
    if len(names) < 2:
        raise UsageError(
            f"{folder} holds {len(names)} class folders ({names[0] if names else 'none'}), and it takes two "
            "or more; give the folder that holds one folder per class"
        )
    images = {name: _images(folder / name) for name in names}
    if empty := [name for name, paths in images.items() if not paths]:
        raise UsageError(
            f"{len(empty)} of {len(names)} class folders in {folder} hold no image: {abbreviate(empty)}; "
            f"fill or remove them (images end in {', '.join(sorted(SUFFIXES))})"
        )
    return images


def _images(folder: Path) -> list[Path]:
    paths: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        paths += [Path(parent, n) for n in names if Path(n).suffix.lower() in SUFFIXES and not _hidden(n)]
    return paths


def _hidden(name: str) -> bool:
    """Whether a name is hidden, such as the ._* files in archives made on macOS, or .ipynb_checkpoints."""
    return name.startswith(".")


def _check_same_classes(parts: tuple[Path, ...], listings: list[dict[str, list[Path]]]) -> None:
    train, test = (set(listing) for listing in listings)
    if train != test:
        raise UsageError(
            f"{parts[0]} and {parts[1]} must hold the same class folders; only in {parts[0].name}: "
            f"{abbreviate(sorted(train - test)) or 'none'}; only in {parts[1].name}: "
            f"{abbreviate(sorted(test - train)) or 'none'}. Rename or remove these, or give path={parts[0]} "
            "to hold out a fifth of it"
        )


def _table(
    folder: Path, listings: list[dict[str, list[Path]]]
) -> tuple[tuple[str, ...], Int64Array, tuple[Path, ...]]:
    """(ids, labels, paths), sorted by id: the path relative to `folder`."""
    import numpy as np

    rows = sorted(
        (path.relative_to(folder).as_posix(), label, path)
        for listing in listings
        for label, paths in enumerate(listing.values())
        for path in paths
    )
    ids, labels, paths = zip(*rows, strict=True)
    return ids, np.array(labels, np.int64), paths
