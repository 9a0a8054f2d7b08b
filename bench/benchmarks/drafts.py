"""Drafts: files and folders that are still being written. Those of a writer that has died are swept.

A writer holds a lock on its draft while it lives. The system releases it when the process ends, by whatever
signal, so no process number is compared, and writers may be in other containers or on other machines. Where a
file system has no locks, nothing is swept.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, prefix: str, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, then rename it: no process ever reads a part of it.

    Its folder is created; drafts in it that died with their writer are swept first.

    Args:
        prefix: how the names of its drafts begin.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, prefix)
    with draft_file(path.parent, prefix) as draft:
        with draft.open("wb") as file:
            write(file)
        draft.replace(path)


def draft_file(folder: Path, prefix: str) -> AbstractContextManager[Path]:
    """An empty, locked file in a folder; rename it inside the block, or it is deleted at the end.

    Raises:
        OSError: if it cannot be written.
    """
    return _draft(folder, prefix, partial(Path.touch, exist_ok=False), partial(Path.unlink, missing_ok=True))


def draft_folder(folder: Path, prefix: str) -> AbstractContextManager[Path]:
    """As `draft_file`, but an empty folder, which is deleted with all that is still in it.

    Raises:
        OSError: if it cannot be written.
    """
    return _draft(folder, prefix, Path.mkdir, partial(shutil.rmtree, ignore_errors=True))


@contextmanager
def _draft(
    folder: Path, prefix: str, create: Callable[[Path], None], delete: Callable[[Path], None]
) -> Iterator[Path]:
    while True:
        path = folder / f"{prefix}{uuid.uuid4().hex}"
        create(path)
        with _locked(path):
            if not path.exists():  # swept between its creation and its lock
                continue
            try:
                yield path
            finally:
                delete(path)
            return


def sweep(folder: Path, prefix: str) -> None:
    """Delete the drafts in a folder that no living process is writing."""
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError), _locked(path) as is_locked:
            if is_locked and path.is_dir():
                shutil.rmtree(path)
            elif is_locked:
                path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a file or folder, unless another process has; yields whether it is locked.

    Raises:
        OSError: if there is none, or it may not be opened.
    """
    # A lock over a network needs a file that is open for writing; a folder cannot be.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
