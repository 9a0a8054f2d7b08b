"""Nearest class mean on the frozen backbone's features: no training.

Mensink et al., "Distance-based image classification" (TPAMI 2013), equation 1. The squared distance of a
feature f to a mean m, -|f - m|^2 = 2 f.m - |m|^2 - |f|^2, is linear in f up to a term that all classes share,
so the classifier is a linear head.

Shapes: C classes of the experience, D width of the features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from methods.base import Method
from methods.hyper import STRICT, hyper
from methods.passes import clean_features
from methods.registry import register
from methods.strategy import StrategyLike


@dataclass(frozen=True, config=STRICT)
class NcmHyper:
    """Hyper-parameters of the nearest class mean; there is no learning rate."""

    metric: Literal["euclidean", "cosine"] = hyper(
        "euclidean", "distance between a feature and a class mean", source="Mensink et al. 2013, equation 1"
    )


@register("ncm")
class Ncm(Method[NcmHyper]):
    """Sets the weights of a class from the mean of its features, in one pass over the experience's images."""

    Hyper = NcmHyper
    frozen_backbone = True
    asks_for = "clean"

    @classmethod
    def learns_from_one_class(cls, hyper: NcmHyper) -> bool:
        """Always: a mean needs no other class to compare with."""
        return True

    def begin(self, strategy: StrategyLike) -> None:
        head = strategy.model.head.tasks[-1].requires_grad_(False)
        means = class_means(strategy, head.classes)
        weight, bias = linear_form(means, self.hyper.metric)
        head.weight.copy_(weight)
        head.bias.copy_(bias)

    def before_training_epoch(self, strategy: StrategyLike, **kwargs: object) -> None:
        strategy.stop_training()

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with rate 0: every strategy asks for an optimiser, and there is nothing to train."""
        return torch.optim.SGD(parameters, lr=0.0)


@torch.no_grad()
def class_means(strategy: StrategyLike, classes: Tensor) -> Tensor:
    """Mean feature of each of the class ids `classes` (C,) over the experience's images: (C, D), float32."""
    total = torch.zeros(len(classes), strategy.model.num_features, dtype=torch.float64, device=classes.device)
    count = torch.zeros(len(classes), 1, dtype=torch.float64, device=classes.device)
    for features, y in clean_features(strategy):
        is_of_class = (y[None, :] == classes[:, None]).double()
        total += is_of_class @ features.double()
        count += is_of_class.sum(1, keepdim=True)
    return (total / count).float()


def linear_form(means: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of the head whose largest logit is that of the nearest of the means (C, D).

    `metric`: "euclidean" or "cosine".
    """
    if metric == "cosine":
        return F.normalize(means, dim=1), means.new_zeros(len(means))
    return 2.0 * means, -means.pow(2).sum(1)
