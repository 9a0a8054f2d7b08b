"""Where names stand so that none covers another: positions from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions within [low, high], in the order of `wanted`, at least `gap` apart, close to `wanted`.

    The least sum of squared moves, by pooling neighbours that collide; where the room is too small for
    the gap, positions are spaced evenly.
    """
    n = len(wanted)
    gap = min(gap, (high - low) / max(n - 1, 1))
    order = sorted(range(n), key=lambda i: (wanted[i], i))
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([wanted[i] - rank * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = [_mean(pool) for pool in pools for _ in pool]
    placed = [min(max(value, low), high - (n - 1) * gap) + rank * gap for rank, value in enumerate(flat)]
    return [placed[order.index(i)] for i in range(n)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def short(name: str, most: int) -> str:
    """At most `most` characters: the middle gives way, since variants differ at the end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"
