"""How a grid is stopped: Ctrl-C, a scheduler's SIGTERM and the end of the terminal mean the same."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

#: Seconds within which signals count as one: a terminal and a parent process may both send the same.
ONE_PRESS = 1.0


@dataclass
class Stop:
    """What was asked for so far: to stop (`asked`), to stop at once (`at_once`, asked for a second time)."""

    asked: bool = False
    at_once: bool = False
    pressed: float = 0.0

    def press(self) -> None:
        """Take a signal into account."""
        now = time.monotonic()
        self.at_once |= self.asked and now - self.pressed > ONE_PRESS
        if not self.asked:
            self.asked, self.pressed = True, now


@contextmanager
def listening() -> Iterator[Stop]:
    """Signals are written down within the block instead of breaking into what it does."""
    stop = Stop()
    with _handling(lambda *_: stop.press()):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Every signal raises KeyboardInterrupt within the block, as Ctrl-C does."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def unheard() -> Iterator[None]:
    """Signals wait until the end of the block; processes that are started within it do not hear them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_again() -> None:
    """For a process that was started within `unheard`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    """Those that are ignored stay so: in the background of a shell Ctrl-C is meant for others."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, old in before.items() if old is not signal.SIG_IGN]
    try:
        for number in heard:
            signal.signal(number, handler)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
