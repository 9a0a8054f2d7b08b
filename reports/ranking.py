"""Which of several methods is best, and which others are not significantly different from it.

Everything here compares values by run. Two runs are paired if they have the same seed and learnt the classes
or the domains in the same order; intervals are those of the paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

from reports.stats import Estimate, estimate

#: A difference between means up to this is a rounding error.
TOLERANCE = 1e-9

Direction = Literal["higher", "lower"]

#: A seed, and the order of classes or domains that it led to.
Run = tuple[int, tuple[str, ...]]
Values = Mapping[Run, float]


@dataclass(frozen=True)
class Leaders:
    """Who leads a column, by position: the one that is significantly `best`, or those `tied` at the top.

    Both are empty where fewer than two methods have values, or no interval can be computed.
    """

    best: int | None = None
    tied: frozenset[int] = frozenset()


def differences(a: Values, b: Values) -> dict[Run, float]:
    """a - b on the runs that both have."""
    return {run: a[run] - b[run] for run in sorted(a.keys() & b.keys())}


def mean(values: Values) -> float:
    """The mean of at least one value."""
    return fsum(values.values()) / len(values)


def ranks(columns: Sequence[Values]) -> list[int | None]:
    """1 for the highest mean; equal means share a rank, and an empty entry has none."""
    means = [mean(values) if values else None for values in columns]
    return [
        None if own is None else 1 + sum(other is not None and other > own for other in means)
        for own in means
    ]


def interval(difference: Estimate) -> tuple[float, float] | None:
    """The two ends of the interval; None for a single value."""
    if difference.half_width is None:
        return None
    return difference.mean - difference.half_width, difference.mean + difference.half_width


def significantly_better(a: Values, b: Values) -> bool | None:
    """Whether the 95 % t-interval of a - b lies above zero; None with fewer than two common runs."""
    difference = estimate(differences(a, b).values())
    ends = interval(difference) if difference else None
    return None if ends is None else ends[0] > TOLERANCE


def leaders(columns: Sequence[Values], direction: Direction) -> Leaders:
    """Who is best, or who shares the lead. An empty entry takes no part.

    The method with the best mean is `best` if it is significantly better than the runner-up, and than all
    others with which it has an interval. Otherwise it is `tied` with those that are not significantly worse.
    """
    sign = 1 if direction == "higher" else -1
    values = {i: {run: sign * value for run, value in v.items()} for i, v in enumerate(columns) if v}
    order = sorted(values, key=lambda i: (-mean(values[i]), i))
    if len(order) < 2:
        return Leaders()
    first, runner_up, *_ = order
    verdicts = {i: significantly_better(values[first], values[i]) for i in order[1:]}
    tied = {i for i, verdict in verdicts.items() if verdict is False}
    if tied:
        return Leaders(tied=frozenset({first, *tied}))
    return Leaders(best=first) if verdicts[runner_up] else Leaders()
