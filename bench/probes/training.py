"""What an experience's training takes: seconds, the method's own share of them, images, energy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin


@dataclass(frozen=True)
class Phases:
    """Seconds of the method's work before the first epoch (`prepare`) and after the last (`consolidate`),
    and the images of all training steps.
    """

    prepare: float
    consolidate: float
    images: int


class PhaseTimer(SupervisedPlugin):  # type: ignore[misc]
    """Writes down when an experience begins and ends for the plugins at its place in the list."""

    began = ended = 0.0
    images = 0

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.began, self.images = _now(strategy), 0

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.images += len(strategy.mb_y)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.ended = _now(strategy)


def phases_of(strategy: Any) -> Phases:
    """Those of the experience that has just ended; the strategy's two witnesses stand around its method."""
    before, after = (plugin for plugin in strategy.plugins if isinstance(plugin, PhaseTimer))
    return Phases(after.began - before.began, after.ended - before.ended, before.images)


def _now(strategy: Any) -> float:
    if strategy.device.type == "cuda":
        torch.cuda.synchronize(strategy.device)
    return time.perf_counter()
