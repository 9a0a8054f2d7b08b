"""What a running cell tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """Where a cell stands. Counts start at 1; `loss` and `images_per_second` are of the last step told.

    `steps` says what is counted: experiences, or the batch sizes of a session that times inference.
    """

    activity: str
    experience: int
    experiences: int
    epoch: int = 0
    epochs: int = 0
    share: float = 0.0
    loss: float | None = None
    images_per_second: float | None = None
    steps: str = "experience"


@dataclass(frozen=True)
class Notice:
    """A sentence that a person should see."""

    text: str


News = Tick | Notice
Observe = Callable[[News], None]


def silent(news: News) -> None:
    """Watch nothing."""
