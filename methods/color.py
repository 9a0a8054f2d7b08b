"""CoLoR (arXiv 2311.17601): a LoRA for each experience on the pre-trained weights, chosen for each image.

Wistuba, Sivaprasad, Balles and Zappella, "Continual learning with low rank adaptation" (2023). Of the paper
its abstract was available to us, and the code of its parent S-Prompts in Renate, by the same authors: this is
S-Prompts with LoRA in place of prompts. An experience trains a LoRA of its own, which starts on the
pre-trained weights and not on earlier ones, and a classifier of its own. At test time the nearest k-means
centroid of the frozen features chooses both (`methods.experts`).

Shapes: B images, N tokens, D width, T experts, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.experts import RoutedHyper, RoutedMethod
from methods.hyper import STRICT, hyper
from methods.lora import LowRank, check_rank
from methods.passes import autocast_of, clean_batches
from methods.registry import register
from methods.strategy import StrategyLike
from methods.vit import QKV, Plug, open_seams, with_changes


class ExpertLora(Plug):
    """LoRA maps of the block's input to each projection in `targets`, a set for each expert.

    Attributes:
        expert: (B,) the expert of each image; None: no map is added, and timm's own code runs.
    """

    def __init__(self, width: int, rank: int, targets: str) -> None:
        super().__init__()
        self.width, self.rank, self.targets = width, rank, targets
        self.experts = nn.ModuleList()
        self.expert: Tensor | None = None

    @property
    def idle(self) -> bool:
        return self.expert is None

    def add_expert(self, like: Tensor) -> None:
        """Add the maps of an expert, which start at zero."""
        maps = nn.ModuleDict({target: LowRank(self.width, self.rank) for target in self.targets})
        self.experts.append(maps.to(like.device))

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        change = self._of_last if self.training else self._of_each
        return with_changes(q, k, v, self.targets, lambda name: change(x, name))

    def _of_last(self, x: Tensor, target: str) -> Tensor:
        """x A^T B^T with the maps of the last expert, which is the one that is trained."""
        maps: Tensor = self.experts[-1][target](x)  # type: ignore[index]
        return maps

    def _of_each(self, x: Tensor, target: str) -> Tensor:
        """x A^T B^T with each image's own expert: two batched products, whatever the number of experts."""
        assert self.expert is not None
        pairs: list[LowRank] = [maps[target] for maps in self.experts]  # type: ignore[index]
        down = torch.stack([pair.down for pair in pairs])[self.expert]  # (B, r, D)
        up = torch.stack([pair.up for pair in pairs])[self.expert]  # (B, D, r)
        return torch.bmm(torch.bmm(x, down.mT.to(x.dtype)), up.mT.to(x.dtype))


@dataclass(frozen=True, config=STRICT)
class ColorHyper(RoutedHyper):
    """Hyper-parameters of CoLoR."""

    lr: float = hyper(5e-3, "learning rate of Adam", source="chosen on validation, docs/defaults.md", gt=0)
    rank: int = hyper(10, "rank of each low-rank map", source="as InfLoRA's code, so that sizes match", ge=1)
    targets: str = hyper(
        "kv",
        "projections that are adapted, some of q, k, v",
        source="as InfLoRA, so that sizes match",
        pattern="^q?k?v?$",
        min_length=1,
    )
    query: Literal["pretrained", "first"] = hyper(
        "pretrained",
        "features that the routing compares: of the frozen backbone, or with the first experience's expert",
        source="pretrained: the code of Renate; first: ours",
    )


@register("color")
class Color(RoutedMethod[ColorHyper]):
    """Trains a LoRA and a classifier for each experience; an image's frozen features choose which answer."""

    Hyper = ColorHyper

    @classmethod
    def caveats(cls, hyper: ColorHyper) -> tuple[str, ...]:
        return (
            *super().caveats(hyper),
            "of CoLoR (arXiv 2311.17601) the abstract was available: rank, targets, optimiser and the "
            "classifier for each experience are ours, the routing is that of its parent S-Prompts",
        )

    def make_seams(self, model: VisionTransformer) -> Sequence[ExpertLora]:
        check_rank(self.name, self.hyper.rank, model)
        self.plugs = []
        for attention in open_seams(model):
            attention.plug = plug = ExpertLora(model.embed_dim, self.hyper.rank, self.hyper.targets)
            self.plugs.append(plug)
        return self.plugs

    def add_expert(self) -> None:
        assert self.model is not None
        for plug, attention in zip(self.plugs, open_seams(self.model), strict=True):
            plug.add_expert(attention.qkv.weight)

    def names_of_expert(self, expert: int) -> Iterable[str]:
        for block in range(len(self.plugs)):
            for target in self.hyper.targets:
                for part in ("down", "up"):
                    yield f"blocks.{block}.attn.plug.experts.{expert}.{target}.{part}"

    def adapt(self, model: VisionTransformer) -> None:
        super().adapt(model)
        self.router.query_expert = 0 if self.hyper.query == "first" else None

    def queries(self, strategy: StrategyLike) -> tuple[Tensor, Tensor]:
        if self.hyper.query == "pretrained":
            return super().queries(strategy)
        parts = []
        for images, labels in clean_batches(strategy):
            with autocast_of(strategy):
                parts.append((self.router.query(strategy.model, images), labels))
        features, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return F.normalize(features, dim=1), labels
