"""What signals mean, and that they are put back."""

from __future__ import annotations

import signal

import pytest

from bench.grid import stopping
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
    """The time that stopping sees; change its only entry."""
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_is_written_down_and_breaks_into_nothing(number: signal.Signals) -> None:
    assert number in SIGNALS
    with stop_on_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert not stop.immediate
    assert signal.getsignal(number) is signal.default_int_handler


def test_twice_means_at_once_but_two_senders_of_one_signal_are_one(clock: list[float]) -> None:
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
