"""Writing to the results folder: completely or not at all, with a clear error where it cannot be done."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: Path) -> Path:
    """The path with the home folder in place of "~"; as it is where there is no such home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (the other one raises an error without a home)


def nearest_existing(path: Path) -> Path:
    """The path itself, or the first folder above it that exists.

    Raises:
        OSError, ValueError: for a name that no file system accepts.
    """
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def is_writable_folder(path: Path) -> bool:
    """Whether this user can create files in a folder."""
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


class StorageError(RuntimeError):
    """The results folder cannot be written to. What was there before is as it was."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is the old one, the new one, or absent; never a partial one.

    Its folder is created, but not that folder's parent: a deleted results folder is not created again.

    Raises:
        StorageError: saying why, and what to do.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
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


def remove_partial_files(folder: Path) -> None:
    """Delete what writers that were killed have left behind; only for the holder of the folder's lock.

    Raises:
        StorageError: if one of them cannot be deleted.
    """
    for partial in folder.glob(".*.*"):
        if partial.is_file() and partial.suffix[1:].isdigit():
            delete(partial)
