"""Locks in a results folder: one per cell, released by the system when the process that holds it ends.

Commands that use the same results folder share the work: a cell runs where it is locked. The lock files are
empty, are in `.locks`, and may stay there.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from bench.storage import StorageError

FOLDER = ".locks"
#: The lock for timing inference: two sessions at a time would slow each other down.
TIMING = "timing"


def acquire_lock(results: Path, name: str) -> FileLock | None:
    """The lock `name`, held until it is released or this process ends; None if another process holds it.

    Args:
        name: the id of a cell, or `TIMING`.

    Raises:
        StorageError: if the lock file cannot be created.
    """
    lock = FileLock(results / FOLDER / f"{name}.lock")
    try:
        (results / FOLDER).mkdir(exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot lock '{lock.lock_file}' ({why}); files on disk are unchanged. "
            "Give a results folder that exists, can be written to, and is on a file system with locks"
        ) from None
    return lock
