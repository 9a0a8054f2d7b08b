"""Which of several columns of numbers is best, and from which others it can be told apart.

Everything here is about values by run: two runs are the same if they saw the same seed and the same classes
in the same order. Comparisons are made within a run, and the interval is that of the differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

from reports.stats import Estimate, estimate

#: Differences of means up to this are rounding.
TOLERANCE = 1e-9

Direction = Literal["higher", "lower"]

#: A seed and the class order it led to.
Run = tuple[int, tuple[int, ...]]
Values = Mapping[Run, float]


@dataclass(frozen=True)
class Standing:
    """Who leads a column, by position: the one that is clearly `best`, or those `tied` at the top.

    Both are empty where there is nobody to compare with, or no interval to do it by.
    """

    best: int | None = None
    tied: frozenset[int] = frozenset()


def differences(a: Values, b: Values) -> dict[Run, float]:
    """a - b on the runs that both have."""
    return {run: a[run] - b[run] for run in sorted(a.keys() & b.keys())}


def mean(values: Values) -> float:
    """Of at least one value."""
    return fsum(values.values()) / len(values)


def ranks(values: Sequence[Values]) -> list[int | None]:
    """1 for the highest mean; equal means share a rank, and what has no value has none."""
    means = [mean(found) if found else None for found in values]
    return [
        None if own is None else 1 + sum(other is not None and other > own for other in means)
        for own in means
    ]


def interval(found: Estimate) -> tuple[float, float] | None:
    """Its two ends; None for a single value."""
    if found.half_width is None:
        return None
    return found.mean - found.half_width, found.mean + found.half_width


def exceeds(a: Values, b: Values) -> bool | None:
    """Whether the 95 % t-interval of a - b lies above zero; None with fewer than two common runs."""
    found = estimate(differences(a, b).values())
    ends = interval(found) if found else None
    return None if ends is None else ends[0] > TOLERANCE


def standing(columns: Sequence[Values], direction: Direction) -> Standing:
    """Who is best, and who is not told apart from it. An empty entry takes no part.

    Best alone is who exceeds the runner-up, and all others with which it has an interval.
    """
    sign = 1 if direction == "higher" else -1
    values = {i: {run: sign * value for run, value in v.items()} for i, v in enumerate(columns) if v}
    order = sorted(values, key=lambda i: (-mean(values[i]), i))
    if len(order) < 2:
        return Standing()
    first, runner_up, *_ = order
    verdicts = {i: exceeds(values[first], values[i]) for i in order[1:]}
    tied = {i for i, verdict in verdicts.items() if verdict is False}
    if tied:
        return Standing(tied=frozenset({first, *tied}))
    return Standing(best=first) if verdicts[runner_up] else Standing()
