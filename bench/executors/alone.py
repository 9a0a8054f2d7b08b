"""Work in a process of its own: it finds nobody's leftovers, leaves none, and takes nobody down with it.

On a CPU the process is forked from a server that has imported the libraries and done nothing else, which
takes a fraction of a second. On a GPU it starts from nothing, because CUDA does not survive a fork.
The process ends with the one that started it, however that one ends, so no work goes on for nobody.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.progress import Observe
from bench.spec import Device
from bench.stopping import SIGNALS, Stop, hear_again, unheard

#: Imported once by the server; what is not here is imported by each process that needs it.
PRELOADED = [
    "bench.measure",
    "bench.outcome",
    "bench.resume",
    "bench.runner",
    "bench.strategy",
    "bench.batches",
    "bench.stream",
]

#: Seconds that work which was asked to stop has to end well; then it is killed.
GRACE = 20.0
#: Seconds until an interrupt that was lost comes again.
LOST = 0.05
#: Seconds between two looks at a process that says nothing.
POLL = 0.5

STATUS = "/proc/{}/status"
KERNEL_COUNTERS = Path("/proc/vmstat")
#: The kernel takes the work first where the memory of the machine runs out, and not who waits for it.
OOM_SCORE = Path("/proc/self/oom_score_adj"), "500"


class DiedError(RuntimeError):
    """The process ended without an answer. `for_memory`: the kernel ended it, because memory ran out."""

    def __init__(self, message: str, for_memory: bool = False) -> None:
        super().__init__(message)
        self.for_memory = for_memory


@dataclass(frozen=True)
class Share:
    """What of the machine a piece of work gets.

    `threads`: of the CPU, None for as many as torch takes by itself. `gpu`: which of the GPUs that this
    process sees, as CUDA_VISIBLE_DEVICES names them; None for all.
    """

    device: Device
    threads: int | None = None
    gpu: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came of the work: its result, or the error it raised."""

    result: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """The result; raises the error."""
        if self.error is not None:
            raise self.error
        return self.result


class Running:
    """Work under way.

    `overdue` tells that it was stopped because its time was up. `connection` is for
    `multiprocessing.connection.wait`.
    """

    def __init__(self, process: Any, connection: Connection, seconds: float | None) -> None:
        self.process, self.connection = process, connection
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.killing: float | None = None
        self.overdue = False
        self.highest = 0
        self.killed_before = kernel_kills()

    def listen(self, observe: Observe) -> Answer | None:
        """Pass on what the work tells; its answer, once it has ended."""
        self._watch()
        try:
            while self.connection.poll():
                kind, content = self.connection.recv()
                if kind != "news":
                    return self._ended(Answer(**{kind: content}))
                observe(content)
        except (EOFError, ConnectionResetError):
            self.process.join()
            return self._ended(Answer(error=self._death()))
        return None

    def stop(self) -> None:
        """Ask the work to end as it does on Ctrl-C; it is killed if it does not."""
        if self.killing is None:
            self.killing = time.monotonic() + GRACE
            self.process.terminate()

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()

    def _watch(self) -> None:
        now = time.monotonic()
        if self.killing is None and self.deadline is not None and now > self.deadline:
            self.overdue = True
            self.stop()
        if self.killing is not None and now > self.killing:
            self.kill()
        self.highest = max(self.highest, _highest_resident(self.process.pid))

    def _ended(self, answer: Answer) -> Answer:
        self.process.join()
        self.connection.close()
        return answer

    def _death(self) -> DiedError:
        code = self.process.exitcode
        if code >= 0:
            return DiedError(f"its process ended with exit status {code} and no answer")
        name = signal.Signals(-code).name
        for_memory = name == "SIGKILL" and kernel_kills() > self.killed_before
        hint = "; the system did that, because memory ran out" if for_memory else ""
        at = f", {self.highest / 2**20:.0f} MiB in use when it was last looked at" if self.highest else ""
        return DiedError(f"its process was ended by {name}{at}{hint}", for_memory)


def start(work: Callable[..., Any], *arguments: Any, share: Share, seconds: float | None = None) -> Running:
    """Start `work(*arguments, observe)` in a process of its own.

    Args:
        work: a function of a module, with arguments and a result that can be pickled.
        seconds: after which it is stopped; None: never.
    """
    context = _context(share.device)
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, share, work, arguments), daemon=False)
    resource_tracker.ensure_running()  # which would else let signals through while it is started
    with unheard():  # neither the server nor what it forks is to end by what is meant for their parent
        process.start()
    sender.close()
    return Running(process, answers, seconds)


def alone(
    work: Callable[..., Any],
    *arguments: Any,
    share: Share,
    observe: Observe,
    stop: Stop,
) -> Any:
    """`work(*arguments, observe)` in a process of its own, and its result.

    Args:
        observe: told of all news of the work.
        stop: looked at now and then.

    Raises:
        DiedError: if the process ended without an answer, as one that is killed does.
        KeyboardInterrupt: if it was asked to stop, once the work has ended.
        Exception: whatever the work raises.
    """
    running = start(work, *arguments, share=share)
    answer = None
    while answer is None:
        wait([running.connection], POLL)
        if stop.asked:
            running.stop()
        if stop.at_once:
            running.kill()
        answer = running.listen(observe)
    if stop.asked:
        raise KeyboardInterrupt
    return answer.get()


def _context(device: Device) -> Any:
    if device == "cuda" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory so far; 0 where it does not tell."""
    with suppress(OSError):
        lines = (line.split() for line in KERNEL_COUNTERS.read_text().splitlines())
        return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)
    return 0


def _highest_resident(pid: int) -> int:
    """Bytes; 0 where the system does not tell, or the process is gone."""
    with suppress(OSError):
        lines = (line.split() for line in Path(STATUS.format(pid)).read_text().splitlines())
        return next((1024 * int(line[1]) for line in lines if line and line[0] == "VmHWM:"), 0)
    return 0


# ---- in the process ------------------------------------------------------------------------------


def _child(sender: Connection, share: Share, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it, by a SIGTERM.
    for asked in SIGNALS:
        signal.signal(asked, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    hear_again()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):
        OOM_SCORE[0].write_text(OOM_SCORE[1])
    gc.freeze()  # what the server imported is no garbage, and takes half a second to be looked through
    with suppress(BrokenPipeError):  # the parent is gone: nobody to tell
        try:
            _take(share)
            answer = ("result", work(*arguments, lambda news: sender.send(("news", news))))
        except KeyboardInterrupt:
            return
        except Exception as error:  # passed on, whatever it is
            answer = ("error", error)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # an answer is not cut short
        sender.send(answer)


def _interrupt_again(unraisable: Any) -> None:
    """An interrupt that fell where Python ignores exceptions, such as in a callback of `gc`, comes again."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(LOST, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _take(share: Share) -> None:
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.gpu
    if share.threads is not None:
        import torch

        torch.set_num_threads(share.threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
