"""How long inference takes: warmed up, synchronised, models in turns, every sample kept.

A timing is that of one call, from normalised images on the device to logits on the device. All models of
a comparison are timed in every round, so that a drifting clock or a busy neighbour hits all alike, and a
ratio is formed within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]
#: Runs a work and returns its seconds.
Clock = Callable[[Work], float]

#: Two windows of calls in a row whose medians differ by no more than this share: warmed up.
SETTLED = 0.05
#: A window is this many calls, or fewer where a call takes long: as many as begin within its seconds.
WINDOW_CALLS = 5
WINDOW_SECONDS = 0.2
MOST_WINDOWS = 20

FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Warmup:
    """How many calls a work was warmed up by, whether its times had settled, and their last median."""

    calls: int
    stable: bool
    seconds: float


@dataclass(frozen=True)
class TimingBudget:
    """How much is timed: `calls` a model a round, at most `rounds`, as many as fit into `seconds`.

    At least `FEWEST_ROUNDS` are made, or `rounds` if that is less, however long they take.
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


def wall_clock(work: Work) -> float:
    """Seconds by the clock, for work that is over when its call returns: on a CPU."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cuda_clock(work: Work) -> float:
    """Seconds by CUDA events around the work, on a device that is idle at the start."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock that waits for the device."""
    return cuda_clock if device.type == "cuda" else wall_clock


def time_in_turns(works: Mapping[str, Work], clock: Clock, effort: TimingBudget) -> dict[str, TimingSamples]:
    """Warm each work up, then time all of them in every round.

    The order moves on by one each round, and every other round goes backwards. Before its timed calls a
    work is called once untimed, because the caches are full of its predecessor.
    """
    warmups = {name: warm_up(work, clock) for name, work in works.items()}
    a_round = sum(warmup.seconds for warmup in warmups.values()) * (1 + effort.calls)
    rounds = rounds_within(effort, a_round)
    samples: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds):
        for name in round_order(list(works), i):
            works[name]()
            samples[name] += [clock(works[name]) for _ in range(effort.calls)]
    return {name: TimingSamples(tuple(samples[name]), rounds, warmups[name]) for name in works}


def warm_up(work: Work, clock: Clock) -> Warmup:
    """Call `work` until its times settle, `MOST_WINDOWS` windows at most."""
    window = _window(work, clock)
    calls, median = len(window), statistics.median(window)
    for _ in range(MOST_WINDOWS - 1):
        window, before = _window(work, clock), median
        calls, median = calls + len(window), statistics.median(window)
        if abs(median - before) <= SETTLED * before:
            return Warmup(calls, True, median)
    return Warmup(calls, False, median)


def _window(work: Work, clock: Clock) -> list[float]:
    seconds = [clock(work)]
    while len(seconds) < WINDOW_CALLS and sum(seconds) < WINDOW_SECONDS:
        seconds.append(clock(work))
    return seconds


def rounds_within(effort: TimingBudget, a_round: float) -> int:
    """How many rounds of `a_round` seconds are made."""
    return min(effort.rounds, max(FEWEST_ROUNDS, int(effort.seconds / a_round)))


def round_order(names: Sequence[str], i: int) -> list[str]:
    """The order of round i: from name i on, around; backwards if i is odd."""
    step = -1 if i % 2 else 1
    return [names[(i + k * step) % len(names)] for k in range(len(names))]
