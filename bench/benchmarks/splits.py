"""What each experience learns, and which images are trained and tested on: pure functions, equal on every
machine.

No random generator selects an image: images are ranked by the sha256 of their names, so a split depends
neither on the order in which files are listed nor on a library's version.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.benchmarks.base import NO_DOMAIN, Dataset, ImageSet, Scale
from bench.benchmarks.names import composed, visible
from bench.model import Scenario
from bench.storage import expanded
from bench.textfile import read_text
from methods.errors import MissingError, UsageError, abbreviate, quote

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array

#: What a cell is tested on: the test set, or a part of the training set that is held out.
TestSource = Literal["test", "validation"]

HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Split:
    """How a data set is divided for one seed.

    Attributes:
        class_order: the data set's class numbers in the order learnt.
        task_sizes: number of classes of each experience.
        domain_order: the data set's domain numbers in the order learnt; empty in a class-incremental stream.
        train_rows: (n,) int64, sorted row numbers of `Dataset.train`.
        train_experience: (n,) int64, the experience (from 0) of each of these images.
        test_rows: (m,) int64, sorted row numbers of `Dataset.test`, or of `Dataset.train` on validation.
        test_experience: (m,) int64, the experience that each of these images belongs to; all `NO_DOMAIN`
            where the test set is one for all experiences.
        test_source: the set that `test_rows` refers to.
        sha256: hash of the names, the class numbers and, in a domain-incremental stream, the domain numbers
            of the training and test images; independent of the orders and of the tasks.
    """

    class_order: tuple[int, ...]
    task_sizes: tuple[int, ...]
    domain_order: tuple[int, ...]
    train_rows: Int64Array
    train_experience: Int64Array
    test_rows: Int64Array
    test_experience: Int64Array
    test_source: TestSource
    sha256: str


def class_order(n_classes: int, seed: int) -> tuple[int, ...]:
    """CODA-Prompt's rule: seed 0 keeps the order of the data set, any other shuffles with Python's `random`.

    >>> class_order(100, 1)[:5]
    (53, 37, 65, 51, 4)
    """
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; give 0 (the data set's class order) or a positive number")
    order = list(range(n_classes))
    if seed > 0:
        random.Random(seed).shuffle(order)
    return tuple(order)


def own_order(n_classes: int, seed: int) -> tuple[int, ...]:
    """The order of the data set for every seed, as in the code of InfLoRA, L2P and DualPrompt.

    >>> own_order(5, 1)
    (0, 1, 2, 3, 4)
    """
    return tuple(range(n_classes))


#: The rules of class orders that need no file, by their names in the protocol: (classes, seed) -> order.
ORDERS: Mapping[str, Callable[[int, int], tuple[int, ...]]] = {"seeded": class_order, "identity": own_order}


def listed_order(names: Sequence[str], path: Path, seed: int, what: str = "classes") -> tuple[int, ...]:
    """`class_order` with the classes, or the domains, numbered by a file of their names, one per line.

    Args:
        what: what the names are of, for the message.

    Raises:
        MissingError: if there is no such file.
        UsageError: unless it gives each name exactly once.
    """
    listed = _read_names(path)
    if set(listed) != set(names) or len(listed) != len(names):
        unknown = sorted(set(listed) - set(names))
        absent = sorted(set(names) - set(listed))
        twice = sorted(name for name, count in Counter(listed).items() if count > 1)
        raise UsageError(
            f"{path} must name each of the {len(names)} {what} once, one per line, such as "
            f"'{names[0]}'; it has {len(listed)} lines; unknown: {abbreviate(unknown) or 'none'}; missing: "
            f"{abbreviate(absent) or 'none'}; twice: {abbreviate(twice) or 'none'}"
        )
    number = {name: position for position, name in enumerate(names)}
    return tuple(number[listed[i]] for i in class_order(len(names), seed))


def _read_names(path: Path) -> list[str]:
    try:
        lines = composed(read_text(expanded(path))).splitlines()
    except OSError as error:
        raise MissingError(
            f"the class order {path} cannot be read ({error.strerror}); legal for --class-order: "
            "seeded, identity, or the path of a text file"
        ) from error
    except ValueError as error:
        raise UsageError(f"the class order {path} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def task_sizes(n_classes: int, tasks: int) -> tuple[int, ...]:
    """Number of classes of each task: sizes differ by at most one, larger ones first; no class is dropped.

    >>> task_sizes(10, 4)
    (3, 3, 2, 2)
    """
    if not 1 <= tasks <= n_classes:
        raise UsageError(
            f"{tasks} tasks cannot be cut from {n_classes} classes; give --tasks between 1 and {n_classes}"
        )
    small, larger = divmod(n_classes, tasks)
    return (small + 1,) * larger + (small,) * (tasks - larger)


def stratified(strata: Int64Array, ids: Sequence[str], most: int | None) -> Int64Array:
    """Sorted rows of the first `most` images of each stratum by rank of name; None takes all."""
    return _joined([rows[:most] for rows in _ranked(strata, ids)])


def strata_of(images: ImageSet) -> Int64Array:
    """(n,) a number for each class, or for each class in each domain where the images have domains."""
    if images.domains is None:
        return images.labels
    domains = images.domains - NO_DOMAIN
    return images.labels * (int(domains.max(initial=0)) + 1) + domains


def hold_out(strata: Int64Array, ids: Sequence[str], fraction: float) -> tuple[Int64Array, Int64Array]:
    """Sorted rows (kept, held out): about `fraction` of each stratum (`strata_of`) is held out.

    Of a stratum of n images, n·fraction are held out, rounded down or up so that all strata together give
    round(N·fraction); but at least one, and at most n - 1.

    Raises:
        UsageError: if a stratum has a single image.
    """
    ranked = _ranked(strata, ids)
    for rows in ranked:
        if len(rows) == 1:
            raise UsageError(
                f"the class of '{ids[int(rows[0])]}' has one image (or has one in its domain), and it takes "
                "two to train on one and to test on another; add images or remove this one's folder"
            )
    shares = _shares([len(rows) for rows in ranked], Fraction(fraction).limit_denominator(1000))
    held = [rows[:share] for rows, share in zip(ranked, shares, strict=True)]
    kept = [rows[share:] for rows, share in zip(ranked, shares, strict=True)]
    return _joined(kept), _joined(held)


def _shares(counts: list[int], fraction: Fraction) -> list[int]:
    """n·fraction rounded down for each stratum; the rest, up to round(N·fraction), by largest remainder."""
    exact = [count * fraction for count in counts]
    left = round(sum(counts) * fraction) - sum(int(share) for share in exact)
    by_remainder = sorted(range(len(exact)), key=lambda i: (int(exact[i]) - exact[i], i))
    extra = set(by_remainder[:left])
    return [
        min(max(int(share) + (i in extra), 1), count - 1)
        for i, (share, count) in enumerate(zip(exact, counts, strict=True))
    ]


def _ranked(strata: Int64Array, ids: Sequence[str]) -> list[Int64Array]:
    """The rows of each stratum that occurs, by its number; within it, by the sha256 of the names."""
    import numpy as np

    keys = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in ids]
    order = np.array(sorted(range(len(ids)), key=keys.__getitem__), np.int64)
    return [order[strata[order] == stratum] for stratum in np.unique(strata)]


def _joined(groups: list[Int64Array]) -> Int64Array:
    import numpy as np

    return np.sort(np.concatenate([np.empty(0, np.int64), *groups]))


@dataclass(frozen=True)
class Stream:
    """What is learnt, experience by experience; see `Split` for the attributes."""

    class_order: tuple[int, ...]
    task_sizes: tuple[int, ...]
    domain_order: tuple[int, ...] = ()

    def experience_of(self, images: ImageSet) -> Int64Array:
        """(n,) the experience of each image: that of its domain in a stream of domains, else of its class."""
        import numpy as np

        if self.domain_order:
            assert images.domains is not None
            position = np.append(np.argsort(np.array(self.domain_order)), NO_DOMAIN)
            return position[images.domains]
        experience_of_class = np.empty(len(self.class_order), np.int64)
        experience_of_class[list(self.class_order)] = np.repeat(
            np.arange(len(self.task_sizes)), self.task_sizes
        )
        return experience_of_class[images.labels]


def class_stream(dataset: Dataset, order: tuple[int, ...], tasks: int) -> Stream:
    """Each experience has classes of its own.

    Args:
        order: of the classes.

    Raises:
        UsageError: for more tasks than classes.
    """
    return Stream(order, task_sizes(len(dataset.classes), tasks))


def domain_stream(dataset: Dataset, order: tuple[int, ...], tasks: int) -> Stream:
    """Each experience has all classes, in a domain of its own.

    Args:
        order: of the domains.

    Raises:
        UsageError: if the number of tasks is not that of the domains, or a domain lacks a class.
    """
    if tasks != len(dataset.domains):
        raise UsageError(
            f"a domain-incremental stream has a task for each of its {len(dataset.domains)} domains "
            f"({abbreviate(dataset.domains)}), not {tasks}; leave --tasks out"
        )
    _check_domains(dataset)
    classes = len(dataset.classes)
    return Stream(tuple(range(classes)), (classes,) * tasks, order)


#: By the scenario: (data set, order, tasks) -> stream.
STREAMS: Mapping[Scenario, Callable[[Dataset, tuple[int, ...], int], Stream]] = {
    "class-incremental": class_stream,
    "domain-incremental": domain_stream,
}


def _check_domains(dataset: Dataset) -> None:
    """Refuse a domain without one of the classes, in training or, where test images have domains, in test.

    Raises:
        UsageError: naming what is absent.
    """
    for name, images in (("training", dataset.train), ("test", dataset.test)):
        assert images.domains is not None
        belong = images.domains != NO_DOMAIN
        if name == "test" and not belong.any():
            continue
        if not belong.all():
            raise UsageError(f"some {name} images belong to a domain and others do not; all must, or none")
        absent = [
            f"{visible(dataset.classes[label])} in {visible(dataset.domains[domain])}"
            for domain, label in lacking(dataset, images)
        ]
        if absent:
            raise UsageError(
                f"in a domain-incremental stream every domain has every class, and {len(absent)} have no "
                f"{name} image: {abbreviate(absent)}; add images, or move the class or the domain elsewhere"
            )


def lacking(dataset: Dataset, images: ImageSet) -> list[tuple[int, int]]:
    """(domain, class), by their numbers, for each class without an image in a domain."""
    assert images.domains is not None
    present = set(zip(images.domains.tolist(), images.labels.tolist(), strict=True))
    pairs = product(range(len(dataset.domains)), range(len(dataset.classes)))
    return [pair for pair in pairs if pair not in present]


def make_split(dataset: Dataset, stream: Stream, *, scale: Scale, eval_on: TestSource) -> Split:
    """Divide a data set for one stream.

    On validation, a part of the training images is held out first, and the test set is not read: the rows
    that the data set names, or a fifth of each class and domain. Then the scale's limits apply to the
    training and to the test images.

    Raises:
        UsageError: for a class too small to hold out from.
    """
    tested = dataset.test if eval_on == "test" else dataset.train
    if eval_on == "test":
        train, test = _all_rows(dataset.train), _all_rows(tested)
    else:
        train, test = _held_out(dataset)
    train = _limited(dataset.train, train, scale.train_per_class)
    test = _limited(tested, test, scale.test_per_class)
    return Split(
        class_order=stream.class_order,
        task_sizes=stream.task_sizes,
        domain_order=stream.domain_order,
        train_rows=train,
        train_experience=stream.experience_of(dataset.train)[train],
        test_rows=test,
        test_experience=stream.experience_of(tested)[test],
        test_source=eval_on,
        sha256=_split_sha256(bool(stream.domain_order), (dataset.train, train), (tested, test)),
    )


def _held_out(dataset: Dataset) -> tuple[Int64Array, Int64Array]:
    """Sorted rows of the training images: (trained on, tested on) on validation."""
    import numpy as np

    if dataset.validation_rows is None:
        return hold_out(strata_of(dataset.train), dataset.train.ids, HELD_OUT)
    return np.setdiff1d(_all_rows(dataset.train), dataset.validation_rows), dataset.validation_rows


def _all_rows(images: ImageSet) -> Int64Array:
    import numpy as np

    return np.arange(len(images), dtype=np.int64)


def _limited(images: ImageSet, rows: Int64Array, per_class: int | None) -> Int64Array:
    return rows[stratified(strata_of(images)[rows], [images.ids[row] for row in rows], per_class)]


def _split_sha256(with_domains: bool, *parts: tuple[ImageSet, Int64Array]) -> str:
    total = hashlib.sha256()
    for word, (images, rows) in zip(("train", "test"), parts, strict=True):
        for row in sorted(rows.tolist(), key=images.ids.__getitem__):
            total.update(f"{word}\0{_line(images, row, with_domains)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _line(images: ImageSet, row: int, with_domain: bool) -> str:
    domain = f"\0{images.domains[row]}" if with_domain and images.domains is not None else ""
    return f"{images.ids[row]}\0{images.labels[row]}{domain}"


def split_by_rows(
    classes: tuple[str, ...],
    pool: ImageSet,
    rows: tuple[Int64Array, Int64Array],
    notes: tuple[str, ...] = (),
    domains: tuple[str, ...] = (),
) -> Dataset:
    """A data set whose training and test images are these rows (train, test) of one pool of images."""
    return Dataset(classes, pool.take(rows[0]), pool.take(rows[1]), notes, domains)


@dataclass(frozen=True)
class _Entry:
    """A row of a split list, and the line where it begins."""

    line: int
    split: str
    name: str

    def __str__(self) -> str:
        return f"{visible(self.name)} (line {self.line})"


def split_from_csv(ids: Sequence[str], path: Path) -> tuple[Int64Array, Int64Array]:
    """Sorted rows (train, test) by an external list: CSV, header `split,id`, rows `train,<id>`, `test,<id>`.

    Images that the list does not name are left out. Names are compared in one Unicode form, and a list that
    was written on Windows may have backslashes in them.

    Raises:
        MissingError: if there is no such file.
        UsageError: for another header, another split, a name that is unknown, or one that is listed twice;
            with the line.
    """
    import numpy as np

    row_of = {name: row for row, name in enumerate(ids)}
    entries = [_known(entry, row_of) for entry in _read_list(path)]
    if extra := [entry for entry in entries if entry.name not in row_of]:
        raise UsageError(
            f"{path} lists {len(extra)} images that this benchmark does not have: "
            f"{abbreviate(list(map(str, extra)))}; its images are named like '{ids[0]}'"
        )
    counts = Counter(entry.name for entry in entries)
    if repeated := {entry.name: entry for entry in entries if counts[entry.name] > 1}:
        raise UsageError(
            f"{path} lists {len(repeated)} images more than once: "
            f"{abbreviate(list(map(str, repeated.values())))}; keep one row each"
        )
    train, test = (
        sorted(row_of[entry.name] for entry in entries if entry.split == word) for word in ("train", "test")
    )
    return np.array(train, np.int64), np.array(test, np.int64)


def unlisted(ids: Sequence[str], rows: tuple[Int64Array, Int64Array], path: Path) -> tuple[str, ...]:
    """A sentence on the images that a list does not name; none where it names them all."""
    absent = len(ids) - len(rows[0]) - len(rows[1])
    return (f"{absent} of {len(ids)} images are in no row of {path.name}, and left out",) if absent else ()


def _known(entry: _Entry, names: Container[str]) -> _Entry:
    """The entry with its name as the benchmark writes it, where that is clear."""
    for name in (entry.name, composed(entry.name), composed(entry.name).replace("\\", "/")):
        if name in names:
            return replace(entry, name=name)
    return entry


def _read_list(path: Path) -> list[_Entry]:
    try:
        rows = list(_rows(read_text(expanded(path))))
    except OSError as error:
        raise MissingError(
            f"the split list {path} cannot be read ({error.strerror}); give its path"
        ) from error
    except ValueError as error:
        raise UsageError(f"the split list {path} cannot be read: {error}") from None
    header = rows[0][1] if rows else []
    if header != ["split", "id"]:
        raise UsageError(f"{path} must begin with the line 'split,id', not {_quoted(header)}")
    for line, row in rows[1:]:
        if len(row) != 2 or row[0] not in ("train", "test"):
            raise UsageError(f"{path}, line {line}: {_quoted(row)} must be 'train,<id>' or 'test,<id>'")
    return [_Entry(line, split, name) for line, (split, name) in rows[1:]]


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV that are not empty, each with the line where it begins.

    Raises:
        ValueError: for a row that is not CSV, such as one with a quote that is never closed.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"line {line} is not CSV ({error}); a quote begins and ends a name, and is doubled within one"
            ) from None
        if row:
            yield line, row


def _quoted(row: Sequence[str]) -> str:
    return quote(",".join(row))
