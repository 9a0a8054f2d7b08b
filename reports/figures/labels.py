"""Places for labels so that none covers another, computed from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.text import clean


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
    positions = [min(max(value, low), high - (n - 1) * gap) + rank * gap for rank, value in enumerate(flat)]
    return [positions[order.index(i)] for i in range(n)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def shorten(name: str, most: int) -> str:
    """One line of at most `most` characters; the middle is left out, since variants differ at the end."""
    name = clean(name)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def text_width(text: str, size: float) -> float:
    """The width of a text in this font size, both in points of 1/72 inch."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


# ---- labels beside points ----------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A rectangle, in points of 1/72 inch."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


@dataclass(frozen=True)
class Candidate:
    """A candidate place for a label, and its cost before anything is covered."""

    box: Box
    cost: float


@dataclass(frozen=True)
class Obstacle:
    """What a label should not cover, and the cost of each square point that it does."""

    box: Box
    cost: float


#: Distances of a label from its point, in points, the nearest first, and directions, the best first.
DISTANCES = (6.0, 9.0, 13.0, 20.0, 30.0, 45.0)
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))

#: The cost of a square point of one label on another, and of a point of distance.
COLLISION_COST = 20.0
DISTANCE_COST = 3.0

#: Rounds in which each label may move once the others are placed.
ROUNDS = 4


def around_point(x: float, y: float, width: float, height: float, area: Box) -> list[Candidate]:
    """Places beside a point for a label of this size, moved into the area where they stick out."""
    return [
        Candidate(
            _inside(_beside(x, y, width, height, distance, direction), area), DISTANCE_COST * distance + rank
        )
        for distance in DISTANCES
        for rank, direction in enumerate(DIRECTIONS)
    ]


def _beside(
    x: float, y: float, width: float, height: float, distance: float, direction: tuple[int, int]
) -> Box:
    across, up = direction
    reach = distance * (0.7 if across and up else 1.0)
    left = x + across * reach - width * (1 - across) / 2
    bottom = y + up * reach - height * (1 - up) / 2
    return Box(left, bottom, left + width, bottom + height)


def _inside(box: Box, area: Box) -> Box:
    across = max(area.left - box.left, 0.0) + min(area.right - box.right, 0.0)
    up = max(area.bottom - box.bottom, 0.0) + min(area.top - box.top, 0.0)
    return Box(box.left + across, box.bottom + up, box.right + across, box.top + up)


def along_line(y: float, width: float, height: float, area: Box) -> list[Candidate]:
    """Places above and below a horizontal line for a label of this size, the right end first."""
    steps = 8
    room = area.right - area.left - width
    return [
        Candidate(_inside(Box(left, y + up, left + width, y + up + height), area), 4.0 * step + cost)
        for step in range(steps + 1)
        for left in [area.right - width - room * step / steps]
        for up, cost in ((2.0, 0.0), (-height - 2.0, 1.0))
    ]


def place_labels(labels: Sequence[Sequence[Candidate]], obstacles: Sequence[Obstacle]) -> list[Box]:
    """The cheapest place for each label, given its candidates: one label after the other, and again once all
    are placed."""
    base_costs = [[_cost(candidate, obstacles) for candidate in candidates] for candidates in labels]
    boxes: list[Box | None] = [None] * len(labels)
    for _ in range(ROUNDS):
        for i, candidates in enumerate(labels):
            others = [box for j, box in enumerate(boxes) if box is not None and j != i]
            costs = [
                base_cost + COLLISION_COST * sum(candidate.box.overlap(box) for box in others)
                for candidate, base_cost in zip(candidates, base_costs[i], strict=True)
            ]
            boxes[i] = candidates[costs.index(min(costs))].box
    return [box for box in boxes if box is not None]


def _cost(candidate: Candidate, obstacles: Sequence[Obstacle]) -> float:
    return candidate.cost + sum(o.cost * candidate.box.overlap(o.box) for o in obstacles)
