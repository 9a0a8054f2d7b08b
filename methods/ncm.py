"""Nearest class mean on the frozen backbone's features: no training at all.

Mensink et al., "Distance-based image classification" (TPAMI 2013), equation 1. The distance to a mean
is linear in the features up to a term all classes share, so the classifier is a linear head too:
-|f - m|^2 = 2 f.m - |m|^2 - |f|^2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor

from methods.base import Method, autocast_of, clean_batches
from methods.hyper import STRICT, hyper
from methods.registry import register
from methods.vit import embed


@dataclass(frozen=True, config=STRICT)
class NcmHyper:
    """Hyper-parameters of the nearest class mean."""

    metric: Literal["euclidean", "cosine"] = hyper(
        "euclidean", "distance between a feature and a class mean", source="Mensink et al. 2013, equation 1"
    )


@register("ncm")
class Ncm(Method):
    """One pass over the experience's images; a class is the mean of its features."""

    Hyper = NcmHyper  # type: ignore[assignment]

    def begin(self, strategy: Any) -> None:
        head = strategy.model.head.tasks[-1].requires_grad_(False)
        means = class_means(strategy, head.classes)
        weight, bias = linear_form(means, self.hyper.metric)
        head.weight.copy_(weight)
        head.bias.copy_(bias)

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        strategy.stop_training()

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """An optimiser is asked for by every strategy; there is nothing for it to move."""
        return torch.optim.SGD(parameters, lr=0.0)


@torch.no_grad()
def class_means(strategy: Any, classes: Tensor) -> Tensor:
    """Mean feature of each of the C class ids `classes` over the experience's images: (C, D)."""
    model = strategy.model.eval()
    total = torch.zeros(len(classes), model.num_features, dtype=torch.float64, device=classes.device)
    count = torch.zeros(len(classes), 1, dtype=torch.float64, device=classes.device)
    for x, y in clean_batches(strategy):
        with autocast_of(strategy):
            features = embed(model, x)
        member = (y[None, :] == classes[:, None]).double()
        total += member @ features.double()
        count += member.sum(1, keepdim=True)
    return (total / count).float()


def linear_form(means: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) whose arg-max is the nearest of the means (C, D)."""
    if metric == "cosine":
        return F.normalize(means, dim=1), means.new_zeros(len(means))
    return 2.0 * means, -means.pow(2).sum(1)
