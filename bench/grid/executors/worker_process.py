"""Run a function in a fresh process, isolated from earlier state; a crash does not affect the caller.

On a CPU the process is forked from a server that has imported the libraries and done nothing else, which
takes a fraction of a second. On a GPU it is spawned, because CUDA does not survive a fork. The process ends
when its parent does, however that happens.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.cell.progress import Observer
from bench.grid.stopping import SIGNALS, Stop, signals_blocked, unblock_signals
from bench.spec import Device

#: Module that the fork server imports once; anything else is imported by each process that needs it.
PRELOADED = ["bench.grid.executors.preloaded"]

#: Seconds within which a worker has to end after a request to stop; then it is killed.
GRACE = 20.0
#: Seconds until a lost interrupt is raised again.
LOST = 0.05
#: Seconds between two checks of a process that sends nothing.
POLL = 0.5

STATUS = "/proc/{}/status"
KERNEL_COUNTERS = Path("/proc/vmstat")
#: Runs a function in a process, as `run_in_process` does.
RunFunction = Callable[..., Any]

#: If memory runs out, the kernel kills a worker rather than the command that waits for it.
OOM_SCORE = Path("/proc/self/oom_score_adj"), "500"


class DiedError(RuntimeError):
    """The process ended without a result. `for_memory`: the kernel killed it because memory ran out."""

    def __init__(self, message: str, for_memory: bool = False) -> None:
        super().__init__(message)
        self.for_memory = for_memory


@dataclass(frozen=True)
class Resources:
    """The part of the machine that a worker uses.

    Attributes:
        threads: CPU threads; None for torch's default number.
        gpu: one of this process's GPUs, as CUDA_VISIBLE_DEVICES names it; None for all of them.
    """

    device: Device
    threads: int | None = None
    gpu: str | None = None


@dataclass(frozen=True)
class WorkerResult:
    """The result of the function, or the error that it raised."""

    result: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """The result; raises the error."""
        if self.error is not None:
            raise self.error
        return self.result


class Worker:
    """A function that runs in a separate process.

    Attributes:
        connection: for `multiprocessing.connection.wait`.
        timed_out: whether it was stopped because it exceeded its time limit.
    """

    def __init__(self, process: Any, connection: Connection, seconds: float | None) -> None:
        self.process, self.connection = process, connection
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.kill_at: float | None = None
        self.timed_out = False
        self.peak_resident = 0
        self.kernel_kills_before = kernel_kills()

    def poll(self, observe: Observer) -> WorkerResult | None:
        """Pass the messages of the function to `observe`; returns its result once it has ended."""
        self._enforce_limits()
        try:
            while self.connection.poll():
                kind, content = self.connection.recv()
                if kind != "message":
                    return self._close(WorkerResult(**{kind: content}))
                observe(content)
        except (EOFError, ConnectionResetError):
            self.process.join()
            return self._close(WorkerResult(error=self._death()))
        return None

    def stop(self) -> None:
        """Interrupt the function, as Ctrl-C does; the process is killed if it does not end within `GRACE`."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + GRACE
            self.process.terminate()

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        if self.kill_at is None and self.deadline is not None and now > self.deadline:
            self.timed_out = True
            self.stop()
        if self.kill_at is not None and now > self.kill_at:
            self.kill()
        self.peak_resident = max(self.peak_resident, _peak_resident(self.process.pid))

    def _close(self, result: WorkerResult) -> WorkerResult:
        self.process.join()
        self.connection.close()
        return result

    def _death(self) -> DiedError:
        code = self.process.exitcode
        if code >= 0:
            return DiedError(f"its process ended with exit status {code} and without a result")
        name = signal.Signals(-code).name
        for_memory = name == "SIGKILL" and kernel_kills() > self.kernel_kills_before
        reason = "; the system killed it because memory ran out" if for_memory else ""
        memory = (
            f", {self.peak_resident / 2**20:.0f} MiB resident when last checked" if self.peak_resident else ""
        )
        return DiedError(f"its process was ended by {name}{memory}{reason}", for_memory)


def start_server() -> RunFunction:
    """Start the server that workers are forked from, so that it imports while this process goes on."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        _context("cpu")
        with _signals_kept_off():
            forkserver.ensure_running()
    return run_in_process


@contextmanager
def _signals_kept_off() -> Iterator[None]:
    """Neither the server nor its forks, started within the block, end by a signal meant for this process."""
    resource_tracker.ensure_running()  # started inside the block, it would let signals through
    with signals_blocked():
        yield


def start_worker(
    function: Callable[..., Any], *arguments: Any, resources: Resources, seconds: float | None = None
) -> Worker:
    """Start `function(*arguments, observe)` in a separate process.

    Args:
        function: a function of a module, with arguments and a result that can be pickled.
        seconds: time limit; None for no limit.
    """
    context = _context(resources.device)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, resources, function, arguments), daemon=False)
    with _signals_kept_off():
        process.start()
    sender.close()
    return Worker(process, receiver, seconds)


def run_in_process(
    function: Callable[..., Any],
    *arguments: Any,
    resources: Resources,
    observe: Observer,
    stop: Stop,
    start: Callable[..., Worker] = start_worker,
) -> Any:
    """The result of `function(*arguments, observe)`, run in a separate process.

    Args:
        observe: called with each message of the function.
        stop: checked regularly.
        start: starts a function in a process, as `start_worker` does.

    Raises:
        DiedError: if the process ended without a result, as one that is killed does.
        KeyboardInterrupt: if a stop was requested, once the function has ended.
        Exception: any error of the function.
    """
    try:
        worker = start(function, *arguments, resources=resources)
    except EOFError:  # the server of the processes was killed
        raise DiedError("its process could not be started: the server of the processes has ended") from None
    result = None
    while result is None:
        wait([worker.connection], POLL)
        if stop.requested:
            worker.stop()
        if stop.immediate:
            worker.kill()
        result = worker.poll(observe)
    if stop.requested:
        raise KeyboardInterrupt
    return result.get()


def _context(device: Device) -> Any:
    if device == "cuda" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def kernel_kills() -> int:
    """Number of processes that the kernel has killed because memory ran out; 0 where it is not counted."""
    with suppress(OSError):
        lines = (line.split() for line in KERNEL_COUNTERS.read_text().splitlines())
        return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)
    return 0


def _peak_resident(pid: int) -> int:
    """Peak resident memory of a process, bytes; 0 where it cannot be read."""
    with suppress(OSError):
        lines = (line.split() for line in Path(STATUS.format(pid)).read_text().splitlines())
        return next((1024 * int(line[1]) for line in lines if line and line[0] == "VmHWM:"), 0)
    return 0


# ---- in the process ------------------------------------------------------------------------------


def _child(
    sender: Connection, resources: Resources, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent reacts, and sends SIGTERM.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    unblock_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):
        OOM_SCORE[0].write_text(OOM_SCORE[1])
    gc.freeze()  # the modules that the server imported take half a second to traverse
    with suppress(BrokenPipeError):  # the parent is gone
        try:
            _apply(resources)
            result = ("result", function(*arguments, lambda message: sender.send(("message", message))))
        except KeyboardInterrupt:
            return
        except Exception as error:  # of any type: it is passed to the parent
            error.add_note(traceback.format_exc())  # the parent sees only where it raises it again
            result = ("error", error)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # do not interrupt the sending of a result
        sender.send(result)


def _interrupt_again(unraisable: Any) -> None:
    """Repeat an interrupt that was raised where Python ignores exceptions, such as in a callback of `gc`."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(LOST, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _apply(resources: Resources) -> None:
    if resources.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = resources.gpu
    if resources.threads is not None:
        import torch

        torch.set_num_threads(resources.threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
