"""Who works on what in a results folder: a lock a cell, which the system releases when its owner ends.

Commands that share a results folder share the work by them. The lock files are empty, lie in `.locks`, and
may be left there.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from bench.storage import StorageError

FOLDER = ".locks"
#: The lock of whoever times inference: two at a time would slow each other down.
MEASURING = "measuring"


def claim(results: Path, name: str) -> FileLock | None:
    """The lock `name`, held until it is released or this process ends; None while another one holds it.

    Args:
        name: the id of a cell, or `MEASURING`.

    Raises:
        StorageError: if the lock cannot be made.
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
            f"cannot lock '{lock.lock_file}' ({why}); nothing that was on disk before is harmed. "
            "Give a results folder that is there, can be written to, and is on a file system with locks"
        ) from None
    return lock
