"""Lists a folder of class folders, and accounts for every file: it is used, or left out for a reason.

Links are followed. What cannot be read is an error, never a file less. Names are compared and returned in
Unicode's composed form (NFC), because file systems differ in the form that they keep.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.benchmarks.names import composed, visible
from methods.errors import UsageError, abbreviate

#: Endings of the names of images, in lower case.
SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    )
)

#: What operating systems and file servers put among the files of others, in lower case.
SYSTEM = frozenset(
    (
        *("@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found"),
        *("system volume information", "desktop.ini", "ehthumbs.db", "thumbs.db"),
    )
)

SideKind = Literal["training", "validation", "test"]

#: The usual names of the sides of a divided folder, in lower case.
SIDES: Mapping[str, SideKind] = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}

#: (reason, what it is about) -> number of files.
LeftOut = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        sides: the training and the test folder, or the only folder.
        images: for each side, the images of each class by its name; the classes of all sides are the same.
        left_out: the files below the folder that are not used.
    """

    sides: tuple[Path, ...]
    images: tuple[Mapping[str, Sequence[Path]], ...]
    left_out: LeftOut

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self.images[0])

    @property
    def note(self) -> str | None:
        """A sentence on the files that are left out; None where there are none."""
        return note_of(self.images, self.left_out)


def note_of(images: Sequence[Mapping[str, Sequence[Path]]], left_out: LeftOut) -> str | None:
    """A sentence on the files that are left out beside these images; None where there are none."""
    if not left_out:
        return None
    used = sum(len(paths) for side in images for paths in side.values())
    return f"{used} images are used; left out: {describe(left_out)}"


def list_folder(folder: Path) -> Listing:
    """List a folder of class folders, or one of a training and a test folder with the same class folders.

    Raises:
        UsageError: no classes, a class without images, sides that differ or are not understood, or anything
            that cannot be read.
    """
    left_out: LeftOut = Counter()
    names = folders(folder, left_out)
    sides = _sides(folder, names, left_out)
    images = [
        _by_class(side, names if side == folder else folders(side, left_out), left_out) for side in sides
    ]
    if len(sides) == 2:
        _check_same_classes(sides, images)
    return Listing(sides, tuple(images), left_out)


def describe(left_out: LeftOut) -> str:
    """The files that are left out: "8 made by a system (@eaDir 8), 3 not named like images (.txt 3)"."""
    reasons = Counter[str]()
    for (reason, _), number in left_out.items():
        reasons[reason] += number
    return ", ".join(f"{total} {reason}{_about(left_out, reason)}" for reason, total in reasons.most_common())


def _about(left_out: LeftOut, reason: str) -> str:
    parts = sorted((-number, about) for (why, about), number in left_out.items() if why == reason and about)
    return f" ({abbreviate([f'{about} {-number}' for number, about in parts])})" if parts else ""


# ---- sides -------------------------------------------------------------------------------------------


def _sides(folder: Path, names: Sequence[str], left_out: LeftOut) -> tuple[Path, ...]:
    """(training, test) if the folder is divided, else the folder itself."""
    by_kind: dict[SideKind, list[str]] = {}
    for name in names:
        if kind := SIDES.get(composed(name).casefold()):
            by_kind.setdefault(kind, []).append(name)
    if "training" in by_kind and len(by_kind) > 1:
        return _divided(folder, names, by_kind, left_out)
    look_like_sides = len(names) > 1 and all(map(_looks_like_a_side, names))
    if look_like_sides or _holds_class_folders(folder, by_kind):
        raise UsageError(
            f"{folder} holds {_quoted(names)}, which look like the sides of a divided data set, not like its "
            f"classes; legal names of the training side are {_legal('training')}, of the other "
            f"{_legal('test')}, {_legal('validation')}, in any case. Rename them and move others away, or "
            "give the path of one of them to hold out a fifth of it"
        )
    return (folder,)


def _legal(kind: SideKind) -> str:
    return ", ".join(name for name, of in SIDES.items() if of == kind)


def _looks_like_a_side(name: str) -> bool:
    """Whether a word of the name is one of a side, such as in "train_images" and "val2017"."""
    return any(word in SIDES for word in re.split(r"[\W\d_]+", composed(name).casefold()))


def _holds_class_folders(folder: Path, by_kind: Mapping[SideKind, Sequence[str]]) -> bool:
    """Whether a folder that is called like a side is one: it holds folders, and no image itself."""
    for name in (name for names in by_kind.values() for name in names):
        entries = [entry for entry in _entries(folder / name) if _set_aside(entry.name) is None]
        if any(map(_is_dir, entries)) and not any(_is_image(entry.name) for entry in entries):
            return True
    return False


def _divided(
    folder: Path, names: Sequence[str], by_kind: Mapping[SideKind, Sequence[str]], left_out: LeftOut
) -> tuple[Path, Path]:
    """The training and the test side; the validation side is the test side where there is no other."""
    for kind, alike in by_kind.items():
        if len(alike) > 1:
            raise UsageError(f"{folder} has several {kind} sides: {_quoted(alike)}; keep one of them there")
    known = {name for alike in by_kind.values() for name in alike}
    for name in (name for name in names if name not in known):
        _leave_out_without_images(folder, name, known, left_out)
    if "test" not in by_kind:
        return folder / by_kind["training"][0], folder / by_kind["validation"][0]
    for name in by_kind.get("validation", ()):
        left_out["in a third side", name] += len(list(_files(folder / name)))
    return folder / by_kind["training"][0], folder / by_kind["test"][0]


def _leave_out_without_images(folder: Path, name: str, sides: set[str], left_out: LeftOut) -> None:
    found = list(_files(folder / name))
    if not found:
        return
    if any(reason is None for _, reason in found):
        raise UsageError(
            f"{folder} holds images in {_quoted([name])} beside the sides {_quoted(sorted(sides))}, and it "
            "is not known which side these belong to; move that folder elsewhere"
        )
    left_out["beside the sides", name] += len(found)


def _check_same_classes(sides: Sequence[Path], images: Sequence[Mapping[str, Sequence[Path]]]) -> None:
    train, test = (set(side) for side in images)
    if train != test:
        raise UsageError(
            f"{sides[0]} and {sides[1]} must hold the same class folders; only in {sides[0].name}: "
            f"{_listed(train - test)}; only in {sides[1].name}: {_listed(test - train)}. Rename or remove "
            f"these, or give path={sides[0]} to hold out a fifth of it"
        )


def _listed(names: set[str]) -> str:
    return abbreviate([visible(name) for name in sorted(names)]) or "none"


def _quoted(names: Sequence[str]) -> str:
    return abbreviate([f"{visible(name)}/" for name in names], 10)


# ---- classes -----------------------------------------------------------------------------------------


def folders(folder: Path, left_out: LeftOut) -> list[str]:
    """The names of the folders in a folder, in the order of their composed forms; notes all other entries."""
    names = []
    for entry in _entries(folder):
        reason = _set_aside(entry.name)
        if reason is None and _is_dir(entry):
            names.append(entry.name)
        elif reason is None:
            _reason(folder / entry.name)  # a link to a class folder that is gone is an error
            left_out["beside the class folders", ""] += 1
        elif size := _size(entry):
            left_out[reason] += size
    return sorted(names, key=composed)


def _by_class(folder: Path, names: Sequence[str], left_out: LeftOut) -> dict[str, list[Path]]:
    if len(names) < 2:
        raise UsageError(
            f"{folder} holds {len(names)} class folders ({names[0] if names else 'none'}), and it takes two "
            "or more; give the folder that holds one folder per class"
        )
    images: dict[str, list[Path]] = {}
    for name in names:
        if composed(name) in images:
            raise UsageError(
                f"{folder} holds two folders whose name looks like '{composed(name)}', in two Unicode forms; "
                "move the images of one into the other"
            )
        images[composed(name)] = _images(folder / name, left_out)
    if empty := [visible(name) for name, paths in images.items() if not paths]:
        raise UsageError(
            f"{len(empty)} of {len(names)} class folders in {folder} hold no image: {abbreviate(empty)}; "
            f"fill or remove them (images end in {', '.join(sorted(SUFFIXES))})"
            + (f". Left out: {describe(left_out)}" if left_out else "")
        )
    return images


def _images(folder: Path, left_out: LeftOut) -> list[Path]:
    images = []
    for path, reason in _files(folder):
        if reason is None:
            images.append(path)
        else:
            left_out[reason] += 1
    return images


# ---- files -------------------------------------------------------------------------------------------


def _files(
    folder: Path, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[Path, tuple[str, str] | None]]:
    """Every file below a folder, links followed, with the reason for leaving it out; None for an image."""
    above |= {_identity(folder)}
    for entry in _entries(folder):
        path = folder / entry.name
        if reason := _set_aside(entry.name):
            yield from ((path, reason) for _ in range(_size(entry)))
        elif not _is_dir(entry):
            yield path, _reason(path)
        elif _identity(path) in above:
            yield path, ("reached again by a link to a folder above", "")
        else:
            yield from _files(path, above)


def _reason(path: Path) -> tuple[str, str] | None:
    """Why a file is left out; None for an image.

    Raises:
        UsageError: for a link that leads nowhere, and for a pipe or a device that is called like an image.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        what = "is a link that leads nowhere" if path.is_symlink() else "cannot be read"
        raise UsageError(f"{path} {what} ({error.strerror}); restore what it was, or remove it") from error
    if not _is_image(path.name):
        return ("not named like images", path.suffix.lower() or "no ending")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is called like an image and is no file (a pipe, a device); remove it")
    return None


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _set_aside(name: str) -> tuple[str, str] | None:
    """Why nothing of this name is looked at; None if it is."""
    if name.casefold() in SYSTEM:
        return ("made by a system", name)
    return ("hidden", "") if name.startswith(".") else None


def _size(entry: os.DirEntry[str]) -> int:
    """The number of files that an entry stands for, links not followed."""
    return _count(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else 1


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be listed ({error.strerror}); allow reading it, or remove it"
        ) from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        raise UsageError(f"{entry.path} cannot be read ({error.strerror}); repair or remove it") from error


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino
