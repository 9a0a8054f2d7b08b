"""Any folder of class folders: path=FOLDER; train/ with test/ or val/ inside, or a stratified fifth as test.

A class is a sub-folder, its images lie anywhere below it, and classes are numbered in the order of
their names. Every file that is used is decoded before training starts (`pixels.FilePixels`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.benchmarks.base import STRICT, Benchmark, Scale, Side, Source, first
from bench.benchmarks.pixels import FilePixels
from bench.benchmarks.splits import HELD_OUT, divide, hold_out, listed
from methods.errors import MissingError, UsageError
from methods.registry import register

SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())


@dataclass(frozen=True, config=STRICT)
class ImageFolderOptions:
    """What `--benchmarks image-folder:...` may set."""

    path: Path | None = Field(None, description="the folder; relative to here or to a data root")
    split: Path | None = Field(None, description="CSV file 'split,id' that replaces the default split")


@register("image-folder")
class ImageFolder(Benchmark[ImageFolderOptions]):
    """Images are stored as squares of image_size / 0.875. Ids: paths relative to the folder."""

    default_tasks = 10
    image_size = 224
    eval_crop = 0.875
    scales = {  # noqa: RUF012
        "smoke": Scale(train_per_class=4, test_per_class=2, epochs=1, batch_size=32),
        "quick": Scale(train_per_class=50, test_per_class=20, epochs=3, batch_size=32),
        "full": Scale(train_per_class=None, test_per_class=None, epochs=20, batch_size=128),
    }
    Options = ImageFolderOptions

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The folder; None without the option `path`."""
        return resolve(self.options.path, roots) if self.options.path else None

    def open(self, roots: Sequence[Path]) -> Source:
        if self.options.path is None:
            raise UsageError("image-folder needs its folder: --benchmarks image-folder:path=FOLDER")
        return open_folder(existing(self.options.path, roots), self.options.split, roots)


def resolve(path: Path, roots: Sequence[Path]) -> Path | None:
    """The folder `path`: as it is, relative to the current folder, or below the first root that has it."""
    candidates = [path.expanduser().absolute(), *(root / path for root in roots)]
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


def existing(path: Path, roots: Sequence[Path]) -> Path:
    """`resolve`, or a MissingError."""
    folder = resolve(path, roots)
    if folder is None:
        places = ", ".join(map(str, dict.fromkeys([Path.cwd(), *roots])))
        raise MissingError(f"there is no folder '{path}', looked for in {places}; give path=FOLDER")
    return folder


def open_folder(folder: Path, split: Path | None, roots: Sequence[Path]) -> Source:
    """A folder of class folders, or of train/ and test/ (or val/) with class folders.

    Args:
        split: external split list, or None for the folder's own split or the hold-out.
        roots: the first of them holds the cache of decoded images.

    Raises:
        UsageError: no classes, a class without images, sides with different classes, a bad split list.
    """
    sides = _side_folders(folder)
    listings = [_images_by_class(side) for side in sides]
    classes = tuple(listings[0])
    if len(sides) == 2:
        _same_classes(sides, listings)
    pools = [_pool(folder, listing, roots[0] / "decoded") for listing in listings]
    if split is None and len(sides) == 2:
        return Source(classes, pools[0], pools[1])
    pool = _pool(folder, _merged(listings), roots[0] / "decoded")
    rows = listed(pool.ids, split) if split else hold_out(pool.labels, pool.ids, HELD_OUT)
    return divide(classes, pool, rows)


def _side_folders(folder: Path) -> tuple[Path, ...]:
    """(train, test) if the folder is cut already, else the folder itself."""
    train = folder / "train"
    for test in (folder / "test", folder / "val"):
        if train.is_dir() and test.is_dir():
            return train, test
    return (folder,)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name))
    if len(names) < 2:
        raise UsageError(
            f"{folder} has {len(names)} class folders{f' ({names[0]})' if names else ''}, and it takes two or "
            "more; give the folder that holds one folder a class"
        )
    images = {name: _images(folder / name) for name in names}
    if empty := [name for name, paths in images.items() if not paths]:
        raise UsageError(
            f"{len(empty)} of {len(names)} class folders in {folder} hold no image: {first(empty)}; fill or "
            f"remove them (images end in {', '.join(sorted(SUFFIXES))})"
        )
    return images


def _images(folder: Path) -> list[Path]:
    return [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not _hidden(name)
    ]


def _hidden(name: str) -> bool:
    """Such as the ._* files that archives made on macOS carry."""
    return name.startswith(".")


def _same_classes(sides: tuple[Path, ...], listings: list[dict[str, list[Path]]]) -> None:
    train, test = (set(listing) for listing in listings)
    if train != test:
        raise UsageError(
            f"{sides[0]} and {sides[1]} must hold the same class folders; only in {sides[0].name}: "
            f"{first(sorted(train - test)) or 'none'}; only in {sides[1].name}: "
            f"{first(sorted(test - train)) or 'none'}. Rename or remove these, or give path={sides[0]} to hold "
            "out a fifth of it"
        )


def _merged(listings: list[dict[str, list[Path]]]) -> dict[str, list[Path]]:
    return {name: [path for listing in listings for path in listing[name]] for name in listings[0]}


def _pool(folder: Path, listing: dict[str, list[Path]], cache: Path) -> Side:
    """The listed images, sorted by their path relative to `folder`."""
    import numpy as np

    rows = sorted(
        (path.relative_to(folder).as_posix(), label, path)
        for label, paths in enumerate(listing.values())
        for path in paths
    )
    ids, labels, paths = zip(*rows, strict=True)
    return Side(ids, np.array(labels, np.int64), FilePixels(paths, cache))
