"""Training of an experience: the seconds that the method itself takes, and the number of images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from methods.strategy import Plugin


@dataclass(frozen=True)
class Phases:
    """The parts of an experience's training.

    Attributes:
        prepare: seconds of the method's work before the first epoch.
        consolidate: seconds of the method's work after the last epoch.
        images: images in all training steps.
    """

    prepare: float
    consolidate: float
    images: int


class PhaseTimer(Plugin):
    """Records when an experience begins and ends at its position in the list of plugins, and counts images.

    With one timer directly before a method and one directly after it, the differences are the method's time.
    """

    began = ended = 0.0
    images = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.began, self.images = _now(strategy), 0

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.images += len(strategy.mb_y)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.ended = _now(strategy)


def phases_of(strategy: Any) -> Phases:
    """The phases of the last experience, from the strategy's two timers around its method."""
    before, after = (plugin for plugin in strategy.plugins if isinstance(plugin, PhaseTimer))
    return Phases(after.began - before.began, after.ended - before.ended, before.images)


def _now(strategy: Any) -> float:
    if strategy.device.type == "cuda":
        torch.cuda.synchronize(strategy.device)
    return time.perf_counter()
