"""Writing to the results folder: whole or not at all, and a sentence where it cannot be done."""

from __future__ import annotations

import os
from pathlib import Path


class StorageError(RuntimeError):
    """The results folder cannot be written to. What was there before is as it was."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is the old one, the new one, or absent; never a part of one.

    Its folder is made, but not the folder of that one: a results folder that disappears is not made again.

    Raises:
        StorageError: saying why, and what to do.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot write '{path}' ({error.strerror}); nothing that was on disk before is harmed. "
            "Make room, or the folder writable, and the same command goes on from there"
        ) from None


def delete(path: Path) -> None:
    """Delete a file, if it is there.

    Raises:
        StorageError: if it is there and stays.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot delete '{path}' ({error.strerror}); make the folder writable, "
            "and the same command goes on"
        ) from None


def sweep(folder: Path) -> None:
    """Delete what writers that were killed have left behind. For whoever has the folder to itself.

    Raises:
        StorageError: if something of it stays.
    """
    for draft in folder.glob(".*.*"):
        if draft.is_file() and draft.suffix[1:].isdigit():
            delete(draft)
