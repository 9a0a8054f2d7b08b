"""Means over seeds and their confidence intervals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import fsum, sqrt

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds and the half-width of its t-interval, in the unit of the values.

    `half_width` is None for a single seed, which has no interval.
    """

    mean: float
    half_width: float | None
    n: int


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and 95 % t-interval over seeds; None if a value is missing or there are none.

    For approximately normal values the t-interval has its nominal coverage from two values on. A bootstrap
    over three or five seeds does not: it covers 75 to 83 % at a nominal 95 %.
    """
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    if not known or len(known) < len(numbers):
        return None
    mean = fsum(known) / len(known)
    if len(known) == 1:
        return Estimate(mean, None, 1)
    spread = statistics.stdev(known) / sqrt(len(known))
    return Estimate(mean, _t_quantile(len(known) - 1) * spread, len(known))


@cache
def _t_quantile(degrees_of_freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats has the same number, and takes half a second to import

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
