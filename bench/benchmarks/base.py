"""The interface of a benchmark: its settings, and the labelled images that it opens to."""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as validated

from bench.benchmarks.pixels import Pixels, Shape
from bench.model import Scenario
from bench.storage import expanded
from methods.errors import UsageError, abbreviate
from methods.hyper import STRICT

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array, UInt8Array

DATA_VARIABLE = "DUALLORA_BENCH_DATA"
NO_DOMAIN = -1  # of a test image that belongs to no domain of the stream
DECODED = "decoded"  # folder of a data root with decoded images, which may be deleted at any time


@validated(frozen=True, config=STRICT)
class Scale:
    """How much of a benchmark is run.

    Attributes:
        train_per_class, test_per_class: at most so many images of each class, and of each domain where the
            images have domains; None for all of them.
        epochs: passes over the training images of a task.
        batch_size: training images per step.
    """

    train_per_class: PositiveInt | None
    test_per_class: PositiveInt | None
    epochs: PositiveInt
    batch_size: PositiveInt


def make_scales(*, smoke: Scale, quick: Scale, full: Scale) -> Mapping[str, Scale]:
    """The settings of `--scale`: every benchmark has these three."""
    return MappingProxyType({"smoke": smoke, "quick": quick, "full": full})


@validated(frozen=True, config=STRICT)
class NoOptions:
    """The options of a benchmark that has none."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images that are not decoded yet: a training set or a test set.

    Attributes:
        ids: the name of each image, the same on every machine: a relative POSIX path, or "train/00123".
        labels: (n,) int64, the position of the image's class in `Dataset.classes`.
        pixels: the n images.
        domains: (n,) int64, the position of the image's domain in `Dataset.domains`, or `NO_DOMAIN` for a
            test image that belongs to none of them; None where the data set has no domains.

    Raises:
        UsageError: if these differ in length, or an id occurs twice.
    """

    ids: tuple[str, ...]
    labels: Int64Array
    pixels: Pixels
    domains: Int64Array | None = None

    def __post_init__(self) -> None:
        domains = self.labels if self.domains is None else self.domains
        if not len(self.ids) == len(self.labels) == len(self.pixels) == len(domains):
            raise UsageError(
                f"{len(self.ids)} image names, {len(self.labels)} labels, {len(domains)} domains and "
                f"{len(self.pixels)} images do not belong together; a benchmark must open to one of each per "
                "image"
            )
        if len(set(self.ids)) < len(self.ids):
            repeated = Counter(self.ids).most_common(1)[0][0]
            raise UsageError(
                f"two images are named '{repeated}'; names must be unique within the training set and "
                "within the test set"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Int64Array) -> ImageSet:
        """The images of these rows, in this order."""
        domains = None if self.domains is None else self.domains[rows]
        ids = tuple(self.ids[row] for row in rows)
        return ImageSet(ids, self.labels[rows], self.pixels.take(rows), domains)

    def shaped(self, shape: Shape) -> ImageSet:
        """The same images, made square in another way; see `Pixels.shaped`."""
        return replace(self, pixels=self.pixels.shaped(shape))

    def decode(self, size: int) -> UInt8Array:
        """All images as (n, size, size, 3) uint8; see `Pixels.decode` for errors."""
        return self.pixels.decode(size)


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened benchmark: class names, training set, test set.

    Attributes:
        notes: sentences on what was read and how, such as files that are left out; for plan and record.
        domains: names of the domains that the images come from; empty where they have none.
        validation_rows: sorted rows of `train` that a run on validation is tested on and not trained on,
            where images are not independent; None for a fifth of each class and domain (`splits.hold_out`).

    Raises:
        UsageError: if a class has no image in one of the two sets.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    validation_rows: Int64Array | None = None

    def __post_init__(self) -> None:
        for name, images in (("training", self.train), ("test", self.test)):
            present = {int(label) for label in images.labels}
            if absent := [cls for label, cls in enumerate(self.classes) if label not in present]:
                raise UsageError(
                    f"{len(absent)} of {len(self.classes)} classes have no {name} image: "
                    f"{abbreviate(absent)}; give each class at least one {name} image, or remove the class"
                )

    @cached_property
    def sha256(self) -> str:
        """Hash of the name, class and stored bytes of every image, in whichever of the two sets it is."""
        return self._hash(self.train, self.test)

    @cached_property
    def train_sha256(self) -> str:
        """The same for the training set alone, which is all that a run on validation may open."""
        return self._hash(self.train)

    def _hash(self, *image_sets: ImageSet) -> str:
        """Reads each file once, as bytes, and decodes none."""
        total = hashlib.sha256()
        for line in sorted(line for images in image_sets for line in self._lines(images)):
            total.update(line.encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def _lines(self, images: ImageSet) -> list[str]:
        rows = zip(images.ids, images.labels, images.pixels.digests(), strict=True)
        return [f"{name}\0{self.classes[label]}\0{digest}\n" for name, label, digest in rows]


OptionsT = TypeVar("OptionsT")


class Benchmark(ABC, Generic[OptionsT]):
    """A data set with its defaults. A subclass fills in the class attributes, `locate` and `open`.

    Attributes:
        name: set by `@register`.
        scenarios: the scenarios it offers; the first is the one without `--scenario`.
        default_tasks: number of tasks of a class-incremental stream without `--tasks`.
        image_size: side of the network's input in pixels, without `--image-size`.
        eval_crop: share of a stored square's side that the central crop of the test images keeps.
        augmentation: of the training images, a name of `bench.cell.batches.AUGMENTATIONS`; "none" where a
            mirrored image belongs to another class.
        backbone: the default backbone's tag; None for the harness' own default.
        scales: the settings of `--scale`, by name: smoke, quick, full.
        pinned: whether `open` refuses images whose content is not the published one, or makes the images
            itself; then their hash is no part of a cell's identity.
        absent: the message for users where `locate` finds nothing.
        Options: frozen pydantic dataclass of the options that `--benchmarks name:key=value+key=value` sets.
            A `Path` says where files are: the hashes of the data cover what they hold, and a cell is the same
            wherever they are.
    """

    name: ClassVar[str]
    scenarios: ClassVar[tuple[Scenario, ...]] = ("class-incremental",)
    default_tasks: ClassVar[int]
    image_size: ClassVar[int]
    eval_crop: ClassVar[float] = 1.0
    augmentation: ClassVar[str] = "flip"
    backbone: ClassVar[str | None] = None
    scales: ClassVar[Mapping[str, Scale]]
    pinned: ClassVar[bool] = False
    absent: ClassVar[str] = "not on this machine; the first run downloads them where there is a network"
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The path of the data on this machine, or None. Checks file names only, and imports no numpy."""

    @abstractmethod
    def open(self, roots: Sequence[Path]) -> Dataset:
        """The labelled images. Data that are not here are downloaded into the first root, where possible.

        Raises:
            MissingError: if the data are not here and could not be downloaded.
            UsageError: if the data are not what they should be.
        """

    def count_domains(self, roots: Sequence[Path]) -> int:
        """The number of domains, which is that of the tasks of a domain-incremental stream.

        To be overridden by a benchmark that offers such streams.

        Raises:
            MissingError: if that takes the data, and they are not here.
        """
        raise NotImplementedError(f"{self.name} offers no domain-incremental stream")


def data_roots(explicit: Path | None) -> tuple[Path, ...]:
    """The folders searched, in order: `--data-root`, DUALLORA_BENCH_DATA, ~/.cache/duallora-bench.

    A user without a home folder has the last one among the temporary files.
    """
    variable = os.environ.get(DATA_VARIABLE)
    home = expanded(Path("~"))
    temporary = Path(tempfile.gettempdir()) / f"duallora-bench-{os.getuid()}"
    cache = home / ".cache" / "duallora-bench" if home.is_absolute() else temporary
    roots = [explicit, Path(variable) if variable else None, cache]
    return tuple(dict.fromkeys(expanded(path).absolute() for path in roots if path is not None))
