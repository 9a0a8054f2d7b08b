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

from bench.costs import FEW_ROUNDS, NARROW, ratios_by_round, relative_width

#: Calls a function and returns the seconds that it took.
Clock = Callable[[Callable[[], object]], float]

#: Warm-up ends once the medians of two consecutive windows of calls differ by at most this share.
SETTLED = 0.05
#: Calls in a window; fewer where calls are slow: no call starts after `WINDOW_SECONDS`.
WINDOW_CALLS = 5
WINDOW_SECONDS = 0.2
MOST_WINDOWS = 8

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
        calls: timed calls of each model per round; one where a call takes longer than `WINDOW_SECONDS`.
        seconds: no round is begun that would end later than this, but `FEWEST_ROUNDS`, or `rounds` if that is
            less, are made in any case.
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
    functions: Mapping[str, Callable[[], object]],
    clock: Clock,
    budget: TimingBudget,
    reference: str,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, TimingSamples]:
    """Warm each function up, then time all of them in every round, until their ratios are known well enough.

    The order is that of `round_order`. In each round a function is called once untimed before its timed
    calls, because the caches still hold the data of the one before it; not where a call is so long that this
    does not matter.

    Args:
        reference: the function that the others are compared with.
        now: seconds that have passed.
    """
    warmups = {name: warm_up(function, clock) for name, function in functions.items()}
    slow = max(warmup.seconds for warmup in warmups.values()) > WINDOW_SECONDS
    samples: dict[str, list[float]] = {name: [] for name in functions}
    started, rounds = now(), 0
    while rounds < rounds_within(budget, rounds, now() - started) and not narrow(samples, reference, rounds):
        for name in round_order(list(functions), rounds):
            if not slow:
                functions[name]()
            samples[name] += [clock(functions[name]) for _ in range(1 if slow else budget.calls)]
        rounds += 1
    return {name: TimingSamples(tuple(samples[name]), rounds, warmups[name]) for name in functions}


def narrow(samples: Mapping[str, Sequence[float]], reference: str, rounds: int) -> bool:
    """Whether the interval of each function's ratio to the reference is narrow enough."""
    if rounds < FEW_ROUNDS:
        return False
    ratios = (ratios_by_round(column, samples[reference], rounds) for column in samples.values())
    return all((relative_width(of_one) or 0.0) <= NARROW for of_one in ratios)


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


def rounds_within(budget: TimingBudget, done: int, seconds: float) -> int:
    """The number of rounds that the budget allows, if `done` rounds took so many seconds."""
    fitting = int(budget.seconds * done / seconds) if done and seconds > 0 else FEWEST_ROUNDS
    return min(budget.rounds, max(FEWEST_ROUNDS, fitting))


def round_order(names: Sequence[str], i: int) -> list[str]:
    """The order of round i: it starts with name i and wraps around; odd rounds run backwards."""
    step = -1 if i % 2 else 1
    return [names[(i + k * step) % len(names)] for k in range(len(names))]
