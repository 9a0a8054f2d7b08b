"""The clock against a model of known length, the rounds against counted calls. No machine is judged."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from bench.costs import FEW_ROUNDS
from bench.probes import latency
from bench.probes.latency import TimingBudget, round_order, rounds_within, time_in_turns, wall_clock, warm_up


class Sleeper(torch.nn.Module):
    """A model that takes a known time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


def script(*seconds: float) -> Callable[[object], float]:
    """A clock that reads from a script; the last reading repeats."""
    left = list(seconds)
    return lambda function: left.pop(0) if len(left) > 1 else left[0]


def test_a_model_that_sleeps_takes_as_long_as_it_sleeps() -> None:
    x = torch.zeros(1)
    functions = {f"{s}": lambda s=s: Sleeper(s)(x) for s in (0.002, 0.02)}
    timings = time_in_turns(functions, wall_clock, TimingBudget(rounds=3, calls=2, seconds=60), "0.002")
    for name, timing in timings.items():
        assert min(timing.samples) >= float(name)  # a sleep is never shorter, but may be longer
    short, long = (min(timing.samples) for timing in timings.values())
    assert long > 3 * short


def test_every_model_is_called_once_untimed_before_its_timed_calls_of_a_round() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}

    def clock(function: Callable[[], object]) -> float:
        function()
        calls[-1] += "!"
        return 0.1

    timings = time_in_turns(functions, clock, TimingBudget(rounds=2, calls=2, seconds=1e9), "a")
    in_rounds = calls[sum(timing.warmup.calls for timing in timings.values()) :]
    assert in_rounds == ["a", "a!", "a!", "b", "b!", "b!", "b", "b!", "b!", "a", "a!", "a!"]
    assert [len(timing.samples) for timing in timings.values()] == [4, 4]
    assert {timing.rounds for timing in timings.values()} == {2}


def test_warm_up_goes_on_until_two_windows_agree() -> None:
    settling = script(*[0.1 / 2**i for i in range(4) for _ in range(2)], 0.0125)
    warmup = warm_up(lambda: None, settling)
    assert warmup.stable
    assert warmup.seconds == 0.0125
    assert warmup.calls > 8


def test_times_that_never_settle_are_reported() -> None:
    readings = iter(range(1, 10_000))
    warmup = warm_up(lambda: None, lambda function: 2.0 ** next(readings) * 1e-40)
    assert not warmup.stable
    assert warmup.calls == latency.MOST_WINDOWS * latency.WINDOW_CALLS


def test_a_slow_model_is_warmed_up_by_few_calls() -> None:
    assert warm_up(lambda: None, script(3.0)).calls == 2


@pytest.mark.parametrize(
    ("done", "seconds", "rounds"),
    [
        (0, 0.0, latency.FEWEST_ROUNDS),
        (1, 100.0, latency.FEWEST_ROUNDS),
        (3, 9.0, 10),
        (3, 0.1, 20),
        (3, 0.0, latency.FEWEST_ROUNDS),
    ],
)
def test_rounds_are_those_that_fit_and_a_few_at_least(done: int, seconds: float, rounds: int) -> None:
    assert rounds_within(TimingBudget(rounds=20, calls=1, seconds=30.0), done, seconds) == rounds


def test_fewer_rounds_than_the_least_can_be_asked_for() -> None:
    assert rounds_within(TimingBudget(rounds=1, calls=1, seconds=30.0), 0, 0.0) == 1


def rounds_made(readings: list[float], seconds: float) -> int:
    """Of a model beside a plain one that takes 0.1 s, where a round takes a second.

    Its first two readings are its warm-up.
    """
    left = {"model": list(readings), "plain": [0.1] * len(readings)}
    functions = {"plain": lambda: None, "model": lambda: None}

    def clock(function: Callable[[], object]) -> float:
        name = next(n for n, f in functions.items() if f is function)
        return left[name].pop(0)

    budget = TimingBudget(rounds=40, calls=1, seconds=seconds)
    timings = time_in_turns(functions, clock, budget, "plain", now=lambda: -len(left["model"]))
    return timings["model"].rounds


def test_timing_ends_once_the_ratio_is_known_well_enough() -> None:
    steady, restless = [0.2] * 80, [0.2] * 2 + [0.1, 0.3] * 40
    assert rounds_made(steady, seconds=1e9) == FEW_ROUNDS
    assert rounds_made(restless, seconds=1e9) == 40


def test_timing_ends_when_its_time_is_used_up() -> None:
    restless = [0.2] * 2 + [0.1, 0.3] * 40
    assert rounds_made(restless, seconds=12.0) == 12
    assert rounds_made(restless, seconds=0.0) == latency.FEWEST_ROUNDS


def test_a_call_that_takes_long_is_made_once_in_a_round_and_not_for_the_caches() -> None:
    calls: list[str] = []

    def clock(function: Callable[[], object]) -> float:
        function()
        return 2 * latency.WINDOW_SECONDS

    functions = {"a": lambda: calls.append("a")}
    timings = time_in_turns(functions, clock, TimingBudget(rounds=3, calls=5, seconds=1e9), "a")
    assert len(calls) == timings["a"].warmup.calls + 3
    assert len(timings["a"].samples) == 3


def test_every_model_comes_first_in_turn() -> None:
    orders = [round_order(list("abc"), i) for i in range(6)]
    assert {order[0] for order in orders} == set("abc")
    assert orders[0] == ["a", "b", "c"]
    assert orders[1] == ["b", "a", "c"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_kernel_of_known_length_on_a_gpu() -> None:
    cycles = 200_000_000
    seconds = latency.cuda_clock(lambda: torch.cuda._sleep(cycles))
    assert 0.02 < seconds < 2.0  # at 0.1 to 10 GHz; without waiting for the device it would be microseconds
