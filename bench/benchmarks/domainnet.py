"""DomainNet: 586,575 images of 345 classes in six domains, by the published lists ("cleaned version").

Data: http://ai.bu.edu/M3SDA/ (Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019).
Put the unpacked folders clipart, infograph, painting, quickdraw, real and sketch, and the lists
`clipart_train.txt`, `clipart_test.txt` and so on, into one folder. The lists number the classes and divide
the images. Where they lack a class in a domain (others report that `painting_train.txt` has no t-shirt), it
is left out in all domains, because an experience has all classes; this is noted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.benchmarks import STRICT, register
from bench.benchmarks.base import Benchmark, Dataset, ImageSet, Scale, make_scales
from bench.benchmarks.domain_folder import domain_names, read_domains, split_by_lists
from bench.benchmarks.image_folder import resolve
from bench.benchmarks.splits import lacking
from methods.errors import MissingError, UsageError, abbreviate

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array

FOLDER = "domainnet"
CLASSES = 345
#: The orders of the domains, by their names: that of the names, as S-Prompts has it, and RanPAC's.
ORDERS = {
    "name": ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    "ranpac": ("real", "quickdraw", "painting", "sketch", "infograph", "clipart"),
}


@dataclass(frozen=True, config=STRICT)
class DomainNetOptions:
    """Options of `--benchmarks domainnet:...`."""

    path: Path | None = Field(None, description=f"the folder, if it is not {FOLDER}/ in a data root")
    lists: Path | None = Field(None, description="folder of the lists, if they are not in the folder itself")
    order: Literal["name", "ranpac"] = Field(
        "name",
        description="the domains' own order, which seed 0 keeps and other seeds shuffle: of their names, or "
        "RanPAC's (real, quickdraw, painting, sketch, infograph, clipart)",
    )
    allow_subset: bool = Field(
        False, description="open a folder with another number of classes: a part, or a stand-in"
    )


@register("domainnet")
class DomainNet(Benchmark[DomainNetOptions]):
    """Images are stored as squares of image_size / 0.875. Ids: "clipart/ant/clipart_009_000001.jpg"."""

    scenarios = ("domain-incremental", "class-incremental")
    default_tasks = 5
    image_size = 224
    eval_crop = 0.875
    scales = make_scales(
        smoke=Scale(train_per_class=4, test_per_class=2, epochs=1, batch_size=32),
        quick=Scale(train_per_class=10, test_per_class=5, epochs=3, batch_size=32),
        full=Scale(train_per_class=None, test_per_class=None, epochs=30, batch_size=128),
    )
    Options = DomainNetOptions
    absent = (
        "not on this machine; from http://ai.bu.edu/M3SDA/ put the six unpacked domains and the 12 lists of "
        f"the cleaned version into {FOLDER}/ of a data root, or give domainnet:path=FOLDER"
    )

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The folder with the six domains."""
        return resolve(self.options.path or Path(FOLDER), roots)

    def count_domains(self, roots: Sequence[Path]) -> int:
        return len(ORDERS[self.options.order])

    def open(self, roots: Sequence[Path]) -> Dataset:
        folder, order = self._folder(roots), ORDERS[self.options.order]
        _check_domains(folder)
        pool = read_domains(folder, order, roots)
        dataset = split_by_lists(pool, self.options.lists or folder)
        if not self.options.allow_subset and len(dataset.classes) != CLASSES:
            raise UsageError(
                f"{folder} and its lists have {len(dataset.classes)} classes, DomainNet has {CLASSES}; "
                "complete them, or run what is there with domainnet:allow_subset=true, which the record then "
                "says"
            )
        return without_incomplete(dataset)

    def _folder(self, roots: Sequence[Path]) -> Path:
        folder = self.locate(roots)
        if folder is None:
            raise MissingError(f"there is no folder '{self.options.path or FOLDER}'; {self.absent}")
        return folder


def _check_domains(folder: Path) -> None:
    """Refuse a folder that lacks a domain or has another one."""
    found, expected = set(domain_names(folder)), set(ORDERS["name"])
    if found != expected:
        raise UsageError(
            f"{folder} must hold the six domains of DomainNet and no other folder; missing: "
            f"{abbreviate(sorted(expected - found)) or 'none'}; others: "
            f"{abbreviate(sorted(found - expected)) or 'none'}"
        )


def without_incomplete(dataset: Dataset) -> Dataset:
    """The data set without the classes that have no training or no test image in one of the domains."""
    import numpy as np

    incomplete: dict[int, str] = {}
    for side, images in (("training", dataset.train), ("test", dataset.test)):
        for domain, label in sorted(lacking(dataset, images), key=lambda pair: pair[::-1]):
            where = f"{dataset.domains[domain]} has no {side} image"
            incomplete.setdefault(label, f"{dataset.classes[label]} ({where})")
    if not incomplete:
        return dataset
    kept = np.array([label for label in range(len(dataset.classes)) if label not in incomplete], np.int64)
    note = (
        f"{len(incomplete)} of {len(dataset.classes)} classes are left out, because they are not in the "
        f"lists of all domains: {abbreviate(list(incomplete.values()))}"
    )
    return dataclasses.replace(
        dataset,
        classes=tuple(dataset.classes[label] for label in kept),
        train=_of_classes(dataset.train, kept),
        test=_of_classes(dataset.test, kept),
        notes=(*dataset.notes, note),
    )


def _of_classes(images: ImageSet, kept: Int64Array) -> ImageSet:
    """The images of these classes, which are numbered anew."""
    import numpy as np

    chosen = images.take(np.flatnonzero(np.isin(images.labels, kept)))
    return dataclasses.replace(chosen, labels=np.searchsorted(kept, chosen.labels))
