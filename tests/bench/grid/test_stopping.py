"""What signals do within each kind of block, and that their handlers are restored."""

from __future__ import annotations

import signal
import time

import pytest

from bench.grid.stopping import SIGNALS, interrupt_on_signals, stop_on_signals

HANDLED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _default_handlers():
    before = [signal.signal(number, signal.default_int_handler) for number in HANDLED]
    yield
    for number, handler in zip(HANDLED, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time as `bench.grid.stopping` reads it: the only entry, which a test changes."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_requests_a_stop_and_interrupts_nothing(number: signal.Signals) -> None:
    assert number in SIGNALS
    with stop_on_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert not stop.immediate
    assert signal.getsignal(number) is signal.default_int_handler


def test_twice_means_at_once_but_two_signals_within_a_second_are_one(clock: list[float]) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        clock[0] += 0.5
        signal.raise_signal(signal.SIGINT)
        assert (stop.requested, stop.immediate) == (True, False)
        clock[0] += 0.6
        signal.raise_signal(signal.SIGINT)
        assert stop.immediate


@pytest.mark.parametrize("number", HANDLED)
def test_before_a_grid_runs_every_signal_interrupts(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interrupt_on_signals():
        signal.raise_signal(number)


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
