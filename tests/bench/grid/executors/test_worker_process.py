"""Functions in real separate processes: what comes back from them, and what cannot."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.cell.progress import Message, Observer, ProgressUpdate, ignore
from bench.grid.executors.worker_process import DiedError, Resources, Worker, run_in_process, start_worker
from bench.grid.stopping import Stop
from methods.errors import UsageError

CALLS: list[int] = []


def whoami(word: str, observe: Observer) -> tuple[str, int, int]:
    """The word, the process, and how many calls there were in it."""
    observe(ProgressUpdate(word, 1, 2))
    CALLS.append(1)
    return word, os.getpid(), len(CALLS)


def refuse(observe: Observer) -> None:
    raise UsageError("legal: nothing")


def vanish(number: int, observe: Observer) -> None:
    os.kill(os.getpid(), number)


def leave(observe: Observer) -> None:
    os._exit(3)


def swallow(observe: Observer) -> None:
    """Ignores every interrupt."""
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


def test_each_function_has_a_process_that_did_nothing_before() -> None:
    messages: list[Message] = []
    results = [
        run_in_process(whoami, word, resources=Resources("cpu"), observe=messages.append, stop=Stop())
        for word in ("a", "b")
    ]
    assert [word for word, _, _ in results] == ["a", "b"]
    assert len({pid for _, pid, _ in results} | {os.getpid()}) == 3
    assert [calls for _, _, calls in results] == [1, 1]
    assert messages == [ProgressUpdate("a", 1, 2), ProgressUpdate("b", 1, 2)]


def test_an_error_of_the_function_is_raised_here() -> None:
    with pytest.raises(UsageError, match="legal: nothing"):
        run_in_process(refuse, resources=Resources("cpu"), observe=ignore, stop=Stop())


def test_an_error_says_where_in_the_process_it_was_raised() -> None:
    with pytest.raises(UsageError) as caught:
        run_in_process(refuse, resources=Resources("cpu"), observe=ignore, stop=Stop())
    assert "in refuse" in "".join(caught.value.__notes__)


STARTED = """
import multiprocessing, os
from bench.grid.executors import worker_process
from bench.grid.executors.worker_process import Resources, start_server
from bench.cell.progress import ignore
from bench.grid.stopping import Stop
from tests.bench.grid.executors.test_worker_process import parent_of
worker_process.PRELOADED[:] = ["colorsys"]  # nothing heavy is needed
run = start_server()
here = {int(p) for p in os.listdir("/proc") if p.isdigit()}
parent, modules = run(parent_of, resources=Resources("cpu"), observe=ignore, stop=Stop())
print(parent in here, "colorsys" in modules)
"""


def parent_of(observe: Observer) -> tuple[int, list[str]]:
    """The process that this one was forked from, and what was imported there."""
    return os.getppid(), list(sys.modules)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_that_was_started_early_is_what_workers_are_forked_from() -> None:
    out = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "True"]


IMPORTING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
from bench.cell.progress import ignore
from bench.grid.executors import worker_process
from bench.grid.executors.worker_process import Resources, start_server
from bench.grid.stopping import stop_on_signals
from tests.bench.grid.executors.test_worker_process import parent_of
sys.path.insert(0, sys.argv[1])
worker_process.PRELOADED[:] = ["slow"]
with stop_on_signals() as stop:
    run = start_server()
    print("started", flush=True)
    try:
        run(parent_of, resources=Resources("cpu"), observe=ignore, stop=stop)
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_server_imports_stops_the_command_without_a_traceback(
    number: int, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(2)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, number)
    out, err = process.communicate()
    assert (out, err, process.returncode) == ("stopped\n", "", 0)


def test_a_process_that_is_killed_is_reported_with_its_signal() -> None:
    with pytest.raises(DiedError, match="ended by SIGKILL"):
        run_in_process(vanish, signal.SIGKILL, resources=Resources("cpu"), observe=ignore, stop=Stop())


def test_a_process_that_ends_without_a_result_is_reported_with_its_exit_status() -> None:
    with pytest.raises(DiedError, match="exit status 3"):
        run_in_process(leave, resources=Resources("cpu"), observe=ignore, stop=Stop())


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started with
from bench.cell.progress import ignore
from bench.grid.executors import worker_process
from bench.grid.executors.worker_process import Resources, run_in_process
from bench.grid.stopping import stop_on_signals
from tests.bench.grid.executors.test_worker_process import run_until_stopped
worker_process.PRELOADED.clear()  # nothing heavy is needed
with stop_on_signals() as stop:
    try:
        run_in_process(
            run_until_stopped, sys.argv[1], resources=Resources("cpu"), observe=ignore, stop=stop
        )
    except KeyboardInterrupt:
        print("stopped")
"""


def run_until_stopped(path: str, observe: Observer) -> None:
    """Writes a file when it begins, and writes it again, slowly, when it is stopped."""
    try:
        Path(path).write_text("began")
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        time.sleep(0.2)
        Path(path).write_text("ended well")
        raise


@pytest.mark.parametrize("whole_terminal", [True, False])
def test_ctrl_c_waits_until_the_function_has_ended_well(tmp_path: Path, whole_terminal: bool) -> None:
    note = tmp_path / "note"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(note)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    while not note.exists() or note.read_text() != "began":
        assert process.poll() is None
        time.sleep(0.05)
    (os.killpg if whole_terminal else os.kill)(process.pid, signal.SIGINT)
    out, _ = process.communicate()
    assert out == "stopped\n"
    assert note.read_text() == "ended well"


def test_a_function_that_ignores_the_interrupt_is_killed_if_it_is_to_stop_at_once() -> None:
    stop, workers = Stop(), []

    def start(*arguments: Any, **options: Any) -> Worker:
        workers.append(start_worker(*arguments, **options))
        return workers[-1]

    def stop_at_once(message: Message) -> None:
        stop.requested = stop.immediate = True

    with pytest.raises(KeyboardInterrupt):
        run_in_process(swallow, resources=Resources("cpu"), observe=stop_at_once, stop=stop, start=start)
    (worker,) = workers
    assert worker.process.exitcode == -signal.SIGKILL
    assert worker.kill_at is not None
    assert time.monotonic() < worker.kill_at  # and did not wait until its grace was over


def test_a_function_that_ignores_the_interrupt_is_killed_when_its_grace_is_over() -> None:
    worker = start_worker(swallow, resources=Resources("cpu"), seconds=None)
    messages: list[Message] = []
    while not messages:
        worker.poll(messages.append)
    worker.stop()
    assert worker.kill_at is not None
    worker.kill_at = 0.0  # the grace is over
    result = None
    while result is None:
        result = worker.poll(messages.append)
    assert "its process was ended by SIGKILL" in str(result.error)
    assert not worker.timed_out


def test_a_function_that_exceeds_its_time_limit_is_stopped_and_marked(tmp_path: Path) -> None:
    note = tmp_path / "note"
    worker = start_worker(run_until_stopped, str(note), resources=Resources("cpu"), seconds=3600.0)
    while not note.exists() or note.read_text() != "began":
        assert worker.poll(ignore) is None
    worker.deadline = 0.0  # the time is over
    result = None
    while result is None:
        result = worker.poll(ignore)
    assert worker.timed_out
    assert note.read_text() == "ended well"


def test_an_interrupt_that_a_library_has_lost_comes_again(tmp_path: Path) -> None:
    stop, note = Stop(), tmp_path / "note"

    def stop_once(message: Message) -> None:
        stop.requested = True

    with pytest.raises(KeyboardInterrupt):
        run_in_process(collect, str(note), resources=Resources("cpu"), observe=stop_once, stop=stop)
    assert note.read_text() == "ended well"  # and was not killed when its grace was over
