"""Locks between real processes: one owner at a time, and none that outlives its process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.grid.locks import claim
from bench.storage import StorageError

OWNER = """
import sys, time
from pathlib import Path
from bench.grid.locks import claim
lock = claim(Path(sys.argv[1]), "cell")
print(lock is not None, flush=True)
sys.stdin.read()
"""


def owner(folder: Path) -> subprocess.Popen[str]:
    """A process that claims `cell` and keeps it until its input ends; prints whether it has it."""
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_claim_is_held_by_one_process_and_ends_with_it(tmp_path: Path, end: signal.Signals | None) -> None:
    with owner(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "True\n"
        assert claim(tmp_path, "cell") is None
        assert claim(tmp_path, "another cell") is not None
        if end is not None:
            first.send_signal(end)
    mine = claim(tmp_path, "cell")
    assert mine is not None
    with owner(tmp_path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "False\n"
    mine.release()
    assert claim(tmp_path, "cell") is not None


def test_where_no_lock_can_be_made_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot lock '.*cell\.lock'.*Give a results folder"):
        claim(tmp_path / "gone", "cell")
    assert not (tmp_path / "gone").exists()
