"""CORe50: videos of 50 objects in 11 sessions; eight are domains, and three are one fixed test set.

Data: core50_128x128.zip of https://vlomonaco.github.io/core50/ (Lomonaco and Maltoni, CORe50: a new Dataset
and Benchmark for Continuous Object Recognition, CoRL 2017), unpacked: s1..s11/o1..o50/C_01_01_000.png.
Sessions 1, 2, 4, 5, 6, 8, 9 and 11 are learnt in this order; sessions 3, 7 and 10 are the test set of all
experiences.

Classes are in the order of the objects' numbers (o1, o2, ..., o50). The order of folder names, which
torchvision's ImageFolder has, is another one (o1, o10, o11, ...).

Neighbouring frames of a video are nearly equal. So validation holds out the last fifth of each video: a fifth
drawn by lot would have the neighbours of nearly all its frames among the training images.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.benchmarks import STRICT, register
from bench.benchmarks.base import NO_DOMAIN, Benchmark, Dataset, ImageSet, Scale, make_scales
from bench.benchmarks.domain_folder import DomainImages, domain_names, read_domains
from bench.benchmarks.image_folder import resolve
from bench.benchmarks.names import visible
from bench.benchmarks.splits import HELD_OUT, strata_of
from methods.errors import MissingError, UsageError, abbreviate

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array

FOLDER = "core50_128x128"
OBJECTS = 50
TRAIN_SESSIONS = tuple(f"s{number}" for number in (1, 2, 4, 5, 6, 8, 9, 11))
TEST_SESSIONS = tuple(f"s{number}" for number in (3, 7, 10))


@dataclass(frozen=True, config=STRICT)
class Core50Options:
    """Options of `--benchmarks core50:...`."""

    path: Path | None = Field(None, description=f"the folder, if it is not {FOLDER}/ in a data root")
    allow_subset: bool = Field(
        False, description="open a folder with another number of objects: a part, or a stand-in"
    )


@register("core50")
class Core50(Benchmark[Core50Options]):
    """Images are stored as squares of image_size / 0.875. Ids: "s1/o1/C_01_01_000.png"."""

    scenarios = ("domain-incremental", "class-incremental")
    default_tasks = 10
    image_size = 224
    eval_crop = 0.875
    scales = make_scales(
        smoke=Scale(train_per_class=2, test_per_class=2, epochs=1, batch_size=32),
        quick=Scale(train_per_class=20, test_per_class=30, epochs=1, batch_size=32),
        full=Scale(train_per_class=None, test_per_class=None, epochs=20, batch_size=128),
    )
    Options = Core50Options
    absent = (
        f"not on this machine; unpack {FOLDER}.zip of https://vlomonaco.github.io/core50/ as {FOLDER}/ in a "
        "data root, or give core50:path=FOLDER, the folder that holds s1 to s11"
    )

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The folder with the 11 sessions."""
        return resolve(self.options.path or Path(FOLDER), roots)

    def count_domains(self, roots: Sequence[Path]) -> int:
        return len(TRAIN_SESSIONS)

    def open(self, roots: Sequence[Path]) -> Dataset:
        folder = self.locate(roots)
        if folder is None:
            raise MissingError(f"there is no folder '{self.options.path or FOLDER}'; {self.absent}")
        _check_sessions(folder)
        pool = read_domains(folder, (*TRAIN_SESSIONS, *TEST_SESSIONS), roots)
        _check_objects(folder, pool.classes)
        if not self.options.allow_subset:
            _check_whole(folder, pool.classes)
        _check_frames(pool)
        return _divided(pool)


# ---- checks ------------------------------------------------------------------------------------------------


def _check_sessions(folder: Path) -> None:
    found, expected = set(domain_names(folder)), {*TRAIN_SESSIONS, *TEST_SESSIONS}
    if found != expected:
        raise UsageError(
            f"{folder} must hold the sessions s1 to s11 and no other folder; missing: "
            f"{abbreviate(sorted(expected - found)) or 'none'}; others: "
            f"{abbreviate(sorted(found - expected)) or 'none'}"
        )


def _check_objects(folder: Path, names: Sequence[str]) -> None:
    if wrong := [visible(name) for name in names if _object_number(name) is None]:
        raise UsageError(
            f"the folders in the sessions of {folder} are objects, o1 to o{OBJECTS}; not legal: "
            f"{abbreviate(wrong)}; rename them, or move them elsewhere"
        )


def _check_whole(folder: Path, names: Sequence[str]) -> None:
    if {*map(_object_number, names)} != {*range(1, OBJECTS + 1)}:
        raise UsageError(
            f"{folder} has {len(names)} objects, CORe50 has {OBJECTS}, o1 to o{OBJECTS}; complete the "
            "folder, or run what is there with core50:allow_subset=true, which the record then says"
        )


def _object_number(name: str) -> int | None:
    match = re.fullmatch(r"o([1-9]\d*)", name)
    return int(match[1]) if match else None


def _check_frames(pool: DomainImages) -> None:
    """Refuse a frame in the folder of another session or object, as its own name says.

    So no frame of a test session is among the training images, or the reverse.
    """
    if wrong := [visible(name) for name in pool.images.ids if not _is_in_place(name)]:
        raise UsageError(
            f"{len(wrong)} of {len(pool.images)} images are not named after their session and object, as "
            f"s1/o2/C_01_02_000.png is: {abbreviate(wrong)}; move them to their folders, or remove them"
        )


def _is_in_place(name: str) -> bool:
    match = re.fullmatch(r"s(\d+)/o(\d+)/C_(\d+)_(\d+)_\d+\.\w+", name)
    return match is not None and (int(match[1]), int(match[2])) == (int(match[3]), int(match[4]))


# ---- dividing ----------------------------------------------------------------------------------------------


def _divided(pool: DomainImages) -> Dataset:
    """Training sessions are domains, test images are of none; classes are in the order of their numbers."""
    import numpy as np

    classes = sorted(pool.classes, key=lambda name: _object_number(name) or 0)
    number = np.array([classes.index(name) for name in pool.classes], np.int64)
    images = dataclasses.replace(pool.images, labels=number[pool.images.labels])
    assert images.domains is not None
    is_test = images.domains >= len(TRAIN_SESSIONS)
    train, test = images.take(np.flatnonzero(~is_test)), images.take(np.flatnonzero(is_test))
    return Dataset(
        tuple(classes),
        train,
        dataclasses.replace(test, domains=np.full(len(test), NO_DOMAIN)),
        pool.notes,
        TRAIN_SESSIONS,
        _ends_of_videos(train),
    )


def _ends_of_videos(train: ImageSet) -> Int64Array:
    """Sorted rows of the last fifth of each video; names are in the order of time.

    Raises:
        UsageError: for a video of one frame.
    """
    import numpy as np

    strata, ends = strata_of(train), []
    in_time = np.array(sorted(range(len(train)), key=train.ids.__getitem__), np.int64)
    for video in np.unique(strata):
        rows = in_time[strata[in_time] == video]
        if len(rows) < 2:
            raise UsageError(
                f"the video of '{train.ids[rows[0]]}' has one frame, and it takes two to hold one out for "
                "validation; complete the folder"
            )
        ends.append(rows[-max(round(len(rows) * HELD_OUT), 1) :])
    return np.sort(np.concatenate(ends))
