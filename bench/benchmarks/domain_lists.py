"""Lists of training and test images in DomainNet's form: a file for each domain and side, with labels.

A line is the image's path, relative to the folder of the domains, and the number of its class, such as
`clipart/ant/clipart_009_000001.jpg 8`. A number stands for one class folder, the same in all lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.benchmarks.names import composed, visible
from bench.storage import expanded
from bench.textfile import read_text
from methods.errors import MissingError, UsageError, abbreviate, quote

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array

PATTERN = "{domain}_{side}.txt"
SIDES = ("train", "test")


@dataclass(frozen=True)
class Line:
    """An image and the number of its class, and where that is written."""

    file: Path
    line: int
    name: str
    label: int

    def __str__(self) -> str:
        return f"{visible(self.name)} ({self.file.name}, line {self.line})"


@dataclass(frozen=True)
class Listed:
    """What the lists of all domains say.

    Attributes:
        classes: the names of the listed classes, by their numbers in the lists.
        rows: rows of the training and of the test images.
    """

    classes: tuple[str, ...]
    rows: tuple[Int64Array, Int64Array]


def read_lists(lists: Path, domains: Sequence[str], class_of: Mapping[str, str]) -> Listed:
    """The lists of these domains.

    Args:
        lists: a folder with `PATTERN` for each domain and side, or a path with `{domain}` and `{side}` in it.
        class_of: the class folder of each image that there is, by the image's name, in the order of the rows.

    Raises:
        MissingError: if a list is not there.
        UsageError: for a line that cannot be read, an image that is not there, is of another domain or is
            listed twice, or a number that does not stand for one class; with the file and the line.
    """
    import numpy as np

    sides = [[line for domain in domains for line in _lines(lists, domain, side)] for side in SIDES]
    both = [line for side in sides for line in side]
    row_of = {name: row for row, name in enumerate(class_of)}
    _check_names(both, row_of)
    classes = _classes(both, class_of)
    train, test = (np.array(sorted(row_of[line.name] for line in side), np.int64) for side in sides)
    return Listed(classes, (train, test))


def list_file(lists: Path, domain: str, side: str) -> Path:
    """The path of one list."""
    pattern = str(lists) if "{domain}" in str(lists) else str(lists / PATTERN)
    return Path(pattern.replace("{domain}", domain).replace("{side}", side))


def _lines(lists: Path, domain: str, side: str) -> Iterator[Line]:
    file = list_file(expanded(lists), domain, side)
    try:
        text = read_text(file)
    except OSError as error:
        raise MissingError(
            f"the list {file} cannot be read ({error.strerror}); lists= is a folder with {PATTERN} for each "
            f"domain and for the sides {' and '.join(SIDES)}, or a path with {{domain}} and {{side}} in it"
        ) from error
    except ValueError as error:
        raise UsageError(f"the list {file} cannot be read: {error}") from None
    for number, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            yield _of_domain(_line(file, number, content), domain)


def _line(file: Path, number: int, content: str) -> Line:
    name, _, label = content.strip().rpartition(" ")
    if not name or not (label.isascii() and label.isdigit()):
        raise UsageError(
            f"{file}, line {number}: {quote(content)} must be the path of an image, a blank and the number "
            "of its class, such as 'clipart/ant/1.jpg 8'"
        )
    return Line(file, number, composed(name.strip()).replace("\\", "/"), int(label))


def _of_domain(line: Line, domain: str) -> Line:
    if line.name.partition("/")[0] != composed(domain):
        raise UsageError(
            f"{line.file}, line {line.line}: {visible(line.name)} is not in the folder {visible(domain)}; "
            "the list of a domain names its images, by paths relative to the folder of all domains"
        )
    return line


def _check_names(lines: Sequence[Line], row_of: Mapping[str, int]) -> None:
    """Refuse images that are not there, and those that are listed twice."""
    if absent := [line for line in lines if line.name not in row_of]:
        raise UsageError(
            f"the lists name {len(absent)} images that are not in the folder: "
            f"{abbreviate(list(map(str, absent)))}; complete the folder, or give the lists that belong to it"
        )
    first: dict[str, Line] = {}
    if twice := [line for line in lines if first.setdefault(line.name, line) is not line]:
        raise UsageError(
            f"{len(twice)} images are listed more than once: {abbreviate(list(map(str, twice)))}; keep one "
            "line each, in the training or in the test list"
        )


def _classes(lines: Sequence[Line], class_of: Mapping[str, str]) -> tuple[str, ...]:
    """The classes in the order of their numbers."""
    of_number: dict[int, Line] = {}
    of_class: dict[str, Line] = {}
    for line in lines:
        name = class_of[line.name]
        for earlier in (of_number.setdefault(line.label, line), of_class.setdefault(name, line)):
            if (earlier.label, class_of[earlier.name]) != (line.label, name):
                raise UsageError(
                    "the numbers of the classes do not agree with the folders: "
                    f"{earlier} has {earlier.label}, {line} has {line.label}; a number stands for one class "
                    "folder, the same in all lists"
                )
    return tuple(class_of[of_number[number].name] for number in sorted(of_number))
