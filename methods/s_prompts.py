"""S-Prompts (arXiv 2207.12819): prompt tokens and a classifier for each domain, chosen for each image.

Wang, Huang and Hong, "S-Prompts learning with pre-trained transformers: an Occam's razor for domain
incremental learning" (NeurIPS 2022), the variant for ViTs (S-iPrompts). Equations and settings are those of
the official code (methods/sprompt.py, models/sinet.py at a26e822). A domain trains prompt tokens, which stand
beside the image's tokens without a position embedding, and a classifier over all classes; the class token is
read. At test time the nearest k-means centroid of the frozen features, by the L1 distance, chooses both
(`methods.experts`).

It was made for streams of domains. In a class-incremental stream the routing also chooses the classes.

Shapes: B images, D width, L prompt tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.errors import UsageError
from methods.experts import Distance, RoutedHyper, RoutedMethod
from methods.hyper import STRICT, hyper
from methods.registry import register
from methods.vit import AddedTokens


@dataclass(frozen=True, config=STRICT)
class SPromptsHyper(RoutedHyper):
    """Hyper-parameters of S-Prompts."""

    lr: float = hyper(3e-2, "learning rate of Adam", source="chosen on validation, docs/defaults.md", gt=0)
    length: int = hyper(
        10, "prompt tokens of a domain", source="the official code, configs: prompt_length", ge=1
    )


class ExpertTokens(nn.Module):
    """The prompt tokens (L, D) of each expert.

    Attributes:
        expert: (B,) the expert of each image; None: no token is added.
    """

    def __init__(self, vit: VisionTransformer, length: int) -> None:
        super().__init__()
        self.width, self.length = vit.embed_dim, length
        self.experts = nn.ParameterList()
        self._tokens = AddedTokens(vit)

    @property
    def expert(self) -> Tensor | None:
        return self._expert

    @expert.setter
    def expert(self, expert: Tensor | None) -> None:
        self._expert = expert
        self._tokens.prompt = None if expert is None else torch.stack(list(self.experts))[expert]

    def add_expert(self, device: torch.device) -> None:
        """Add tokens drawn from U(-1/sqrt D, 1/sqrt D), as those of a linear layer; so the official code."""
        bound = 1 / math.sqrt(self.width)
        tokens = torch.empty(self.length, self.width).uniform_(-bound, bound)
        self.experts.append(nn.Parameter(tokens.to(device)))


@register("s-prompts")
class SPrompts(RoutedMethod[SPromptsHyper]):
    """Trains prompt tokens and a classifier for each experience; frozen features choose which answer."""

    Hyper = SPromptsHyper
    distance: ClassVar[Distance] = "manhattan"

    def make_seams(self, model: VisionTransformer) -> Sequence[ExpertTokens]:
        if model.cls_token is None or model.global_pool != "token":
            raise UsageError(
                f"s-prompts reads the class token, and this backbone pools by '{model.global_pool}'; use a "
                "backbone whose classifier reads the class token"
            )
        model.prompts = self.tokens = ExpertTokens(model, self.hyper.length)
        return [self.tokens]

    def add_expert(self) -> None:
        assert self.model is not None
        self.tokens.add_expert(next(self.model.parameters()).device)

    def names_of_expert(self, expert: int) -> Iterable[str]:
        return (f"prompts.experts.{expert}",)
