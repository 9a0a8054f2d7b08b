"""The timing traps: every comparison has a row, and the busy process ends; no times are compared."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.studies import timing_traps as traps


def test_every_comparison_has_its_row():
    rows = list(traps.rows(images=1, size=16, rounds=2))
    assert [row[0].split(" ")[0] for row in rows] == ["first", "with", "B", "B"]
    assert all(float(cell) >= 0 for row in rows for cell in row[1:])


def test_a_row_is_of_medians():
    assert traps.comparison("x", [0.2, 0.1, 9.0], [0.1])[1:] == ["200.0", "100.0", "2.00"]


def test_in_turns_the_ratio_is_formed_within_a_round():
    times = {"A": [1.0, 10.0, 10.0], "B": [1.0, 10.0, 20.0]}
    assert traps.in_turns_row("x", times)[3] == "1.00"


def test_the_busy_process_ends_with_its_block_even_after_an_error(monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(traps.subprocess, "Popen", Popen)
    with pytest.raises(KeyError), traps.busy():
        {}[started[0].poll()]  # an error while it runs
    assert started[0].poll() is not None


def test_the_busy_process_ends_with_a_parent_that_was_killed():
    start = "import os, subprocess, sys; "
    start += f"subprocess.Popen([sys.executable, '-c', {traps.BUSY!r}, str(os.getpid())])"
    parent = subprocess.run([sys.executable, "-c", start], stdout=subprocess.PIPE, timeout=60)
    assert parent.stdout == b""  # read to its end: the child, which inherits the pipe, has ended too
