"""Locks between real processes: one owner at a time, and no lock that outlives its process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.grid.locks import acquire_lock
from bench.storage import StorageError

OWNER = """
import sys, time
from pathlib import Path
from bench.grid.locks import acquire_lock
lock = acquire_lock(Path(sys.argv[1]), "cell")
print(lock is not None, flush=True)
sys.stdin.read()
"""


def owner(folder: Path) -> subprocess.Popen[str]:
    """A process that locks `cell` until its input ends; it prints whether it has the lock."""
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path, end: signal.Signals | None) -> None:
    with owner(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "True\n"
        assert acquire_lock(tmp_path, "cell") is None
        assert acquire_lock(tmp_path, "another cell") is not None
        if end is not None:
            first.send_signal(end)
    lock = acquire_lock(tmp_path, "cell")
    assert lock is not None
    with owner(tmp_path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "False\n"
    lock.release()
    assert acquire_lock(tmp_path, "cell") is not None


def test_a_lock_that_cannot_be_created_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot lock '.*cell\.lock'.*Give a results folder"):
        acquire_lock(tmp_path / "gone", "cell")
    assert not (tmp_path / "gone").exists()
