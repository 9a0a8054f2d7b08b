"""Latency of inference: warmed up, synchronised, all models timed in turns, every sample kept.

A sample is the time of one call, from normalised images on the device to logits on the device. All models of
a comparison are timed in every round, so that a changing clock frequency or another process affects all of
them, and ratios are formed within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

#: Calls a function and returns the seconds that it took.
Clock = Callable[[Callable[[], object]], float]

#: Warm-up ends once the medians of two consecutive windows of calls differ by at most this share.
SETTLED = 0.05
#: Calls in a window; fewer where calls are slow: no call starts after `WINDOW_SECONDS`.
WINDOW_CALLS = 5
WINDOW_SECONDS = 0.2
MOST_WINDOWS = 20

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Warmup:
    """The untimed calls before the first round.

    Attributes:
        calls: their number.
        stable: whether the times had settled.
        seconds: median of the last window.
    """

    calls: int
    stable: bool
    seconds: float


@dataclass(frozen=True)
class TimingBudget:
    """How much is timed.

    Attributes:
        rounds: at most so many rounds.
        calls: timed calls of each model per round.
        seconds: the rounds fit into this time, but at least `FEWEST_ROUNDS`, or `rounds` if that is less, are
            made in any case.
    """

    rounds: int
    calls: int
    seconds: float


@dataclass(frozen=True)
class TimingSamples:
    """Seconds of each call, round by round, the same number in each round."""

    samples: tuple[float, ...]
    rounds: int
    warmup: Warmup


def wall_clock(function: Callable[[], object]) -> float:
    """Seconds of wall-clock time, for a function whose work is done when it returns, as on a CPU."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cuda_clock(function: Callable[[], object]) -> float:
    """Seconds between CUDA events before and after the function, on a device that is idle at the start."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock for a device; it waits until the device has finished."""
    return cuda_clock if device.type == "cuda" else wall_clock


def time_in_turns(
    functions: Mapping[str, Callable[[], object]], clock: Clock, budget: TimingBudget
) -> dict[str, TimingSamples]:
    """Warm each function up, then time all of them in every round.

    The order is that of `round_order`. In each round a function is called once untimed before its timed
    calls, because the caches still hold the data of the one before it.
    """
    warmups = {name: warm_up(function, clock) for name, function in functions.items()}
    round_seconds = sum(warmup.seconds for warmup in warmups.values()) * (1 + budget.calls)
    rounds = rounds_within(budget, round_seconds)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds):
        for name in round_order(list(functions), i):
            functions[name]()
            samples[name] += [clock(functions[name]) for _ in range(budget.calls)]
    return {name: TimingSamples(tuple(samples[name]), rounds, warmups[name]) for name in functions}


def warm_up(function: Callable[[], object], clock: Clock) -> Warmup:
    """Call `function` until its times have settled, for at most `MOST_WINDOWS` windows."""
    window = _window(function, clock)
    calls, median = len(window), statistics.median(window)
    for _ in range(MOST_WINDOWS - 1):
        window, previous = _window(function, clock), median
        calls, median = calls + len(window), statistics.median(window)
        if abs(median - previous) <= SETTLED * previous:
            return Warmup(calls, True, median)
    return Warmup(calls, False, median)


def _window(function: Callable[[], object], clock: Clock) -> list[float]:
    seconds = [clock(function)]
    while len(seconds) < WINDOW_CALLS and sum(seconds) < WINDOW_SECONDS:
        seconds.append(clock(function))
    return seconds


def rounds_within(budget: TimingBudget, round_seconds: float) -> int:
    """The number of rounds that the budget allows, at `round_seconds` each."""
    return min(budget.rounds, max(FEWEST_ROUNDS, int(budget.seconds / round_seconds)))


def round_order(names: Sequence[str], i: int) -> list[str]:
    """The order of round i: it starts with name i and wraps around; odd rounds run backwards."""
    step = -1 if i % 2 else 1
    return [names[(i + k * step) % len(names)] for k in range(len(names))]
