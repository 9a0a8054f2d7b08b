"""Any folder of domains with the same class folders: path=FOLDER, with DOMAIN/CLASS/image below it.

PACS and Office-Home have this form. Test images are those of lists (`domain_lists`), else those of the test
folder in each domain (DOMAIN/train/CLASS and DOMAIN/test/CLASS), else a fifth of each class in each domain.
Files that are left out are counted, and each file that is used is decoded before training starts, as for
`image-folder`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.benchmarks import STRICT, register
from bench.benchmarks.base import DECODED, Benchmark, Dataset, ImageSet, Scale, make_scales
from bench.benchmarks.class_folders import (
    SIDES,
    LeftOut,
    Listing,
    folders,
    list_folder,
    note_of,
)
from bench.benchmarks.domain_lists import Listed, read_lists
from bench.benchmarks.image_folder import existing, resolve
from bench.benchmarks.names import composed, visible
from bench.benchmarks.pixels import FilePixels
from bench.benchmarks.splits import HELD_OUT, hold_out, split_by_rows, strata_of
from methods.errors import UsageError, abbreviate

if TYPE_CHECKING:
    from bench.benchmarks.pixels import BoolArray

#: Listings by the name of their domain, in the order of the domains.
Listings = Mapping[str, Listing]


@dataclass(frozen=True, config=STRICT)
class DomainFolderOptions:
    """Options of `--benchmarks domain-folder:...`."""

    path: Path | None = Field(None, description="the folder; relative to here or to a data root")
    lists: Path | None = Field(
        None,
        description="folder with lists of images, {domain}_train.txt and {domain}_test.txt, or a path with "
        "{domain} and {side} in it; lines: path, blank, number of the class",
    )


@register("domain-folder")
class DomainFolder(Benchmark[DomainFolderOptions]):
    """Domains are numbered in the order of their names. Ids: paths, "sketch/dog/n02103406_343-1.png"."""

    scenarios = ("domain-incremental", "class-incremental")
    default_tasks = 5
    image_size = 224
    eval_crop = 0.875
    scales = make_scales(
        smoke=Scale(train_per_class=4, test_per_class=2, epochs=1, batch_size=32),
        quick=Scale(train_per_class=20, test_per_class=10, epochs=3, batch_size=32),
        full=Scale(train_per_class=None, test_per_class=None, epochs=20, batch_size=128),
    )
    Options = DomainFolderOptions
    absent = (
        "yours: --benchmarks domain-folder:path=FOLDER, with a folder per domain, and in it one per class"
    )

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The folder; None without the option `path`."""
        return resolve(self.options.path, roots) if self.options.path else None

    def count_domains(self, roots: Sequence[Path]) -> int:
        return len(domain_names(self._folder(roots)))

    def open(self, roots: Sequence[Path]) -> Dataset:
        folder = self._folder(roots)
        pool = read_domains(folder, domain_names(folder), roots)
        if self.options.lists is None:
            return split_pool(pool)
        return split_by_lists(pool, self.options.lists)

    def _folder(self, roots: Sequence[Path]) -> Path:
        if self.options.path is None:
            raise UsageError("domain-folder needs its folder: --benchmarks domain-folder:path=FOLDER")
        return existing(self.options.path, roots)


@dataclasses.dataclass(frozen=True, eq=False)
class DomainImages:
    """The images of a folder of domains.

    Attributes:
        classes, domains: their names.
        images: of all domains.
        is_test: (n,) whether an image is in the test folder of its domain; None where domains have none.
        notes: sentences on files that are left out.
    """

    classes: tuple[str, ...]
    domains: tuple[str, ...]
    images: ImageSet
    is_test: BoolArray | None
    notes: tuple[str, ...]


# ---- listing -----------------------------------------------------------------------------------------------


def domain_names(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder of domains; looks only there.

    Raises:
        UsageError: for fewer than two, and for the sides of a divided data set.
    """
    names = folders(folder, Counter())
    distinct = {composed(name) for name in names}
    if len(distinct) < max(len(names), 2):
        raise UsageError(
            f"{folder} holds {len(distinct)} folders of different names ({abbreviate(names) or 'none'}), and "
            "it takes two domains or more; give the folder that holds one folder per domain"
        )
    if all(name.casefold() in SIDES for name in distinct):
        raise UsageError(
            f"{folder} holds the sides of a divided data set ({abbreviate(names)}), not domains; sides are "
            "legal in each domain (DOMAIN/train/CLASS), and image-folder reads sides with class folders"
        )
    return tuple(names)


def read_domains(folder: Path, names: Sequence[str], roots: Sequence[Path]) -> DomainImages:
    """The images of these domains, each a folder of class folders, or of sides with class folders.

    Args:
        names: of the domains, in their order.
        roots: the first of them holds the cache of decoded images.

    Raises:
        UsageError: for a folder that is no domain, or classes that are not in all domains; see
            `class_folders.list_folder` for others.
    """
    _check_depth(folder, names)
    listings = {composed(name): list_folder(folder / name) for name in names}
    _check_sides(listings)
    _check_classes(listings)
    left_out = sum((listing.left_out for listing in listings.values()), _beside(folder))
    note = note_of([side for listing in listings.values() for side in listing.images], left_out)
    return _domain_images(folder, listings, roots[0] / DECODED, (note,) if note else ())


def _check_depth(folder: Path, names: Sequence[str]) -> None:
    """Refuse folders that hold no folder: those of classes, not of domains."""
    flat = [name for name in names if not folders(folder / name, Counter())]
    if len(flat) == len(names):
        raise UsageError(
            f"the folders in {folder} ({abbreviate(flat)}) hold no folders: these are classes, not domains; "
            f"legal is DOMAIN/CLASS/image. To take them as classes: --benchmarks image-folder:path={folder}"
        )
    if flat:
        raise UsageError(
            f"{len(flat)} of {len(names)} domains in {folder} hold no class folder: {abbreviate(flat)}; "
            "legal is DOMAIN/CLASS/image; move these folders elsewhere, or put class folders into them"
        )


def _check_sides(listings: Listings) -> None:
    divided = [name for name, listing in listings.items() if len(listing.sides) == 2]
    if divided and len(divided) < len(listings):
        others = [name for name in listings if name not in divided]
        raise UsageError(
            f"of the domains, {abbreviate(divided)} are divided into a training and a test folder and "
            f"{abbreviate(others)} are not; divide all or none"
        )


def _check_classes(listings: Listings) -> None:
    """Refuse a class that is not in all domains."""
    every = sorted({name for listing in listings.values() for name in listing.classes})
    lacking = {
        cls: [name for name, listing in listings.items() if cls not in listing.classes] for cls in every
    }
    if wrong := [_lack(cls, domains, listings) for cls, domains in lacking.items() if domains]:
        raise UsageError(
            f"all domains must hold the same class folders, and {len(wrong)} of {len(every)} classes are not "
            f"in all of them: {abbreviate(wrong)}; add images, or move the class or the domain elsewhere"
        )


def _lack(name: str, domains: Sequence[str], listings: Listings) -> str:
    if len(domains) == len(listings) - 1 > 1:
        (only,) = (domain for domain in listings if domain not in domains)
        return f"'{visible(name)}' is in {visible(only)} alone"
    return f"'{visible(name)}' is not in {abbreviate([visible(domain) for domain in domains])}"


def _beside(folder: Path) -> LeftOut:
    """What lies beside the domains."""
    left_out: LeftOut = Counter()
    folders(folder, left_out)
    return Counter(
        {(reason.replace("class folders", "domains"), about): n for (reason, about), n in left_out.items()}
    )


def _domain_images(folder: Path, listings: Listings, cache: Path, notes: tuple[str, ...]) -> DomainImages:
    import numpy as np

    rows = sorted(_rows(folder, listings))
    ids, labels, domains, sides, paths = zip(*rows, strict=True)
    images = ImageSet(ids, np.array(labels, np.int64), FilePixels(paths, cache), np.array(domains, np.int64))
    first = next(iter(listings.values()))
    is_test = np.array(sides, bool) if len(first.sides) == 2 else None
    return DomainImages(first.classes, tuple(listings), images, is_test, notes)


def _rows(folder: Path, listings: Listings) -> Iterator[tuple[str, int, int, int, Path]]:
    """(id, label, domain, side, path) of each image."""
    for domain, listing in enumerate(listings.values()):
        for side, images in enumerate(listing.images):
            for label, name in enumerate(listing.classes):
                for path in images[name]:
                    yield composed(path.relative_to(folder).as_posix()), label, domain, side, path


# ---- dividing ----------------------------------------------------------------------------------------------


def split_pool(pool: DomainImages) -> Dataset:
    """Divide as the domains are divided, else hold out a fifth of each class in each domain."""
    import numpy as np

    if pool.is_test is None:
        rows = hold_out(strata_of(pool.images), pool.images.ids, HELD_OUT)
    else:
        rows = np.flatnonzero(~pool.is_test), np.flatnonzero(pool.is_test)
    return split_by_rows(pool.classes, pool.images, rows, pool.notes, pool.domains)


def split_by_lists(pool: DomainImages, lists: Path) -> Dataset:
    """Divide by lists; classes are numbered as in the lists.

    Raises:
        UsageError: see `read_lists`.
    """
    folder_of = [pool.classes[label] for label in pool.images.labels]
    listed = read_lists(lists, pool.domains, dict(zip(pool.images.ids, folder_of, strict=True)))
    numbered = _renumbered(pool, listed)
    left = len(pool.images) - sum(map(len, listed.rows))
    notes = (f"{left} of {len(pool.images)} images are in no list, and left out",) if left else ()
    return split_by_rows(listed.classes, numbered, listed.rows, pool.notes + notes, pool.domains)


def _renumbered(pool: DomainImages, listed: Listed) -> ImageSet:
    """The images with labels by the lists; those of classes that no list has, which are left out, have -1."""
    import numpy as np

    number = {name: position for position, name in enumerate(listed.classes)}
    labels = np.array([number.get(name, -1) for name in pool.classes], np.int64)
    return dataclasses.replace(pool.images, labels=labels[pool.images.labels])
