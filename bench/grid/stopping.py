"""Stopping a grid: Ctrl-C, SIGTERM and the end of the terminal have the same effect."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

#: Seconds within which signals count as one: a terminal and a parent process may both send the same.
ONE_REQUEST = 1.0


@dataclass
class Stop:
    """Whether a stop was requested; `immediate` if it was requested twice."""

    requested: bool = False
    immediate: bool = False
    first_at: float = 0.0

    def request(self) -> None:
        """Request a stop; a second request after more than a second makes it immediate."""
        now = time.monotonic()
        self.immediate |= self.requested and now - self.first_at > ONE_REQUEST
        if not self.requested:
            self.requested, self.first_at = True, now


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within the block, signals request a stop instead of raising an exception."""
    stop = Stop()
    with _handling(lambda *_: stop.request()):
        yield stop


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Within the block, every signal raises KeyboardInterrupt, as Ctrl-C does."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Signals are delivered at the end of the block; processes started within it have them blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    """Undo `signals_blocked`, in a process that was started within it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    """Install a handler; ignored signals stay ignored, as Ctrl-C is for a background job."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, previous in before.items() if previous is not signal.SIG_IGN]
    try:
        for number in handled:
            signal.signal(number, handler)
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
