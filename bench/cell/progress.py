"""The messages of a running cell, and of a timing session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressUpdate:
    """Where a cell or a timing session stands. Counts start at 1.

    Attributes:
        experience, experiences: the current one, and their number.
        share: the finished part of the activity, 0 to 1.
        loss: of the last step.
        images_per_second: since the last message.
        steps: the unit of `experience`, for people: "task", or "part" of a timing session.
    """

    activity: str
    experience: int
    experiences: int
    epoch: int = 0
    epochs: int = 0
    share: float = 0.0
    loss: float | None = None
    images_per_second: float | None = None
    steps: str = "task"


@dataclass(frozen=True)
class Notice:
    """A sentence that a person should see."""

    text: str


Message = ProgressUpdate | Notice
Observer = Callable[[Message], None]


def ignore(message: Message) -> None:
    """An observer that does nothing."""
