"""Nearest class mean on the frozen backbone's features: no training.

Mensink et al., "Distance-based image classification" (TPAMI 2013), equation 1. The squared distance of a
feature f to a mean m, -|f - m|^2 = 2 f.m - |m|^2 - |f|^2, is linear in f up to a term that all classes share,
so the classifier is a linear head.

Where classes come again, in a stream of domains, a class keeps one mean over the images of all its domains
(prototypes=pooled), or one mean for each domain, of which the nearest counts (prototypes=domain).

Shapes: C classes of the experience, D width of the features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import Method
from methods.head import ClassHead, HeadPerExperience
from methods.hyper import STRICT, hyper
from methods.passes import clean_features
from methods.registry import register
from methods.strategy import StrategyLike, comes_again


@dataclass(frozen=True, config=STRICT)
class NcmHyper:
    """Hyper-parameters of the nearest class mean; there is no learning rate."""

    metric: Literal["euclidean", "cosine"] = hyper(
        "euclidean", "distance between a feature and a class mean", source="Mensink et al. 2013, equation 1"
    )
    prototypes: Literal["pooled", "domain"] = hyper(
        "pooled",
        "whether a class that comes again in another domain keeps one mean, or gets one for each domain",
        source="ours: one mean is what all images at once would give",
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

    def make_head(self, model: VisionTransformer) -> ClassHead:
        kind = ClassHead if self.hyper.prototypes == "pooled" else HeadPerExperience
        return kind(model.num_features, self.head_init)

    def begin(self, strategy: StrategyLike) -> None:
        head = strategy.model.head.requires_grad_(False)
        classes = head.tasks[-1].classes
        sums, counts = class_sums(strategy, classes)
        if self.hyper.prototypes == "pooled" and comes_again(strategy.experience):
            sums, counts = self._pooled(classes, sums, counts, head.width)
        head.assign(classes, *linear_form((sums / counts).float(), self.hyper.metric))

    def _pooled(self, classes: Tensor, sums: Tensor, counts: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The sums and counts of these classes over all experiences so far, which the memory keeps."""
        for name, values in (("sums", sums), ("counts", counts)):
            so_far = values.new_zeros(width, values.shape[1])
            if name in self.memory:
                so_far[: len(self.memory[name])] = self.memory[name].to(values.device)
            self.memory[name] = so_far.index_add(0, classes, values)
        return self.memory["sums"][classes], self.memory["counts"][classes]

    def before_training_epoch(self, strategy: StrategyLike, **kwargs: object) -> None:
        strategy.stop_training()

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with rate 0: every strategy asks for an optimiser, and there is nothing to train."""
        return torch.optim.SGD(parameters, lr=0.0)


@torch.no_grad()
def class_sums(strategy: StrategyLike, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (C, D) of the features of each of the class ids `classes` (C,) over the experience's images, and
    their number (C, 1); float64.
    """
    total = torch.zeros(len(classes), strategy.model.num_features, dtype=torch.float64, device=classes.device)
    count = torch.zeros(len(classes), 1, dtype=torch.float64, device=classes.device)
    for features, y in clean_features(strategy):
        is_of_class = (y[None, :] == classes[:, None]).double()
        total += is_of_class @ features.double()
        count += is_of_class.sum(1, keepdim=True)
    return total, count


def linear_form(means: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of the head whose largest logit is that of the nearest of the means (C, D).

    `metric`: "euclidean" or "cosine".
    """
    if metric == "cosine":
        return F.normalize(means, dim=1), means.new_zeros(len(means))
    return 2.0 * means, -means.pow(2).sum(1)
