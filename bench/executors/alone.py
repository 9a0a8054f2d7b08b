"""Work in a process of its own: it finds nobody's leftovers, leaves none, and takes nobody down with it.

On a CPU the process is forked from a server that has imported the libraries and done nothing else, which
takes a fraction of a second. On a GPU it starts from nothing, because CUDA does not survive a fork.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from bench.progress import Observe
from bench.spec import Device

T = TypeVar("T")

#: Imported once by the server; what is not here is imported by each process that needs it.
PRELOADED = ["bench.measure", "bench.runner", "bench.strategy", "bench.batches", "bench.stream"]


class DiedError(RuntimeError):
    """The process ended without an answer."""


def alone(work: Callable[..., T], *arguments: Any, device: Device, observe: Observe) -> T:
    """`work(*arguments, observe)` in a process of its own.

    Args:
        work: a function of a module, with arguments and a result that can be pickled.
        device: where it works.
        observe: told of every tick of the work.

    Raises:
        DiedError: if the process ended without an answer, as one that is killed does.
        KeyboardInterrupt: on Ctrl-C, once the work has ended as it does on Ctrl-C.
        Exception: whatever the work raises.
    """
    context = _context(device)
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, work, arguments), daemon=False)
    try:
        with _undisturbed():
            process.start()
        sender.close()
        result: T = _answer(answers, process, observe)
        return result
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        if process.pid is not None:
            process.join()
        answers.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the end of the block: a process that is being started could not be stopped."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed and callable(before):  # not where Ctrl-C is ignored, as in the background of a shell
        before(pressed[0], None)


def _context(device: Device) -> Any:
    if device == "cuda" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _answer(answers: Connection, process: Any, observe: Observe) -> Any:
    while True:
        try:
            kind, content = answers.recv()
        except EOFError:
            process.join()
            raise DiedError(_how_it_ended(process.exitcode)) from None
        if kind == "result":
            return content
        if kind == "error":
            raise content
        observe(content)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit status {code} and no answer"
    name = signal.Signals(-code).name
    hint = "; the system does that where memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _child(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it, by a SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    gc.freeze()  # what the server imported is no garbage, and takes half a second to be looked through
    with suppress(BrokenPipeError):  # the parent is gone: nobody to tell
        try:
            sender.send(("result", work(*arguments, lambda tick: sender.send(("tick", tick)))))
        except KeyboardInterrupt:
            return
        except Exception as error:  # passed on, whatever it is
            sender.send(("error", error))


def _stop(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt
