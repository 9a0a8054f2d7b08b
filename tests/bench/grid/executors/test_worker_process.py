"""Work in real processes of their own: what comes back, and what cannot."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench.cell.progress import Observer, ProgressUpdate, ignore
from bench.grid.executors.worker_process import DiedError, Resources, Worker, alone
from bench.grid.stopping import Stop
from methods.errors import UsageError

LEFT_BEHIND: list[int] = []


def whoami(word: str, observe: Observer) -> tuple[str, int, int]:
    """The word, the process, and how much earlier work has left behind in it."""
    observe(ProgressUpdate(word, 1, 2))
    LEFT_BEHIND.append(1)
    return word, os.getpid(), len(LEFT_BEHIND)


def refuse(observe: Observer) -> None:
    raise UsageError("legal: nothing")


def vanish(number: int, observe: Observer) -> None:
    os.kill(os.getpid(), number)


def leave(observe: Observer) -> None:
    os._exit(3)


def swallow(observe: Observer) -> None:
    """Does not obey."""
    observe(ProgressUpdate("began", 1, 1))
    while True:
        with suppress(KeyboardInterrupt):
            time.sleep(60)


def collect(path: str, observe: Observer) -> None:
    """Is interrupted in a callback of `gc`, where Python ignores all exceptions."""

    def linger(phase: str, info: object) -> None:
        gc.callbacks.remove(linger)
        observe(ProgressUpdate("began", 1, 1))
        time.sleep(60)

    gc.callbacks.append(linger)
    gc.collect()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(path).write_text("ended well")
        raise


def test_each_work_has_a_process_that_did_nothing_before() -> None:
    ticks: list[ProgressUpdate] = []
    found = [
        alone(whoami, word, share=Resources("cpu"), observe=ticks.append, stop=Stop()) for word in ("a", "b")
    ]
    assert [word for word, _, _ in found] == ["a", "b"]
    assert len({pid for _, pid, _ in found} | {os.getpid()}) == 3
    assert [left for _, _, left in found] == [1, 1]
    assert ticks == [ProgressUpdate("a", 1, 2), ProgressUpdate("b", 1, 2)]


def test_what_it_raises_is_raised_here() -> None:
    with pytest.raises(UsageError, match="legal: nothing"):
        alone(refuse, share=Resources("cpu"), observe=ignore, stop=Stop())


def test_a_process_that_is_killed_is_told_by_its_signal() -> None:
    with pytest.raises(DiedError, match="ended by SIGKILL"):
        alone(vanish, signal.SIGKILL, share=Resources("cpu"), observe=ignore, stop=Stop())


def test_a_process_that_ends_without_an_answer_is_told_by_its_status() -> None:
    with pytest.raises(DiedError, match="exit status 3"):
        alone(leave, share=Resources("cpu"), observe=ignore, stop=Stop())


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
from bench.grid.executors import worker_process
from bench.cell.progress import silent
from bench.grid.stopping import listening
from tests.bench.test_alone import work_until_stopped
alone.PRELOADED = []  # nothing heavy is needed
with listening() as stop:
    try:
        share = alone.Share("cpu")
        alone.alone(work_until_stopped, sys.argv[1], share=share, observe=silent, stop=stop)
    except KeyboardInterrupt:
        print("stopped")
"""


def work_until_stopped(path: str, observe: Observer) -> None:
    """Leaves a file when it begins, and writes into it, slowly, when it is stopped."""
    try:
        Path(path).write_text("began")
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        time.sleep(0.2)
        Path(path).write_text("ended well")
        raise


@pytest.mark.parametrize("whole_terminal", [True, False])
def test_ctrl_c_waits_until_the_work_has_ended_well(tmp_path: Path, whole_terminal: bool) -> None:
    note = tmp_path / "note"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(note)], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    while not note.exists() or note.read_text() != "began":
        assert process.poll() is None
        time.sleep(0.05)
    (os.killpg if whole_terminal else os.kill)(process.pid, signal.SIGINT)
    out, _ = process.communicate()
    assert out == "stopped\n"
    assert note.read_text() == "ended well"


def test_work_that_does_not_obey_is_killed_where_it_is_to_stop_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, in_its_grace = Stop(), []

    def twice(news: object) -> None:
        stop.requested = stop.immediate = True

    def kill(running: Worker) -> None:
        in_its_grace.append(running.killing is not None and time.monotonic() < running.killing)
        running.process.kill()

    monkeypatch.setattr(Worker, "kill", kill)
    with pytest.raises(KeyboardInterrupt):
        alone(swallow, share=Resources("cpu"), observe=twice, stop=stop)
    assert in_its_grace[0]


def test_an_interrupt_that_a_library_has_lost_comes_again(tmp_path: Path) -> None:
    stop, note = Stop(), tmp_path / "note"

    def once(news: object) -> None:
        stop.requested = True

    with pytest.raises(KeyboardInterrupt):
        alone(collect, str(note), share=Resources("cpu"), observe=once, stop=stop)
    assert note.read_text() == "ended well"  # and was not killed when its grace was over
