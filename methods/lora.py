"""Low-rank adaptation of the attention's projections (LoRA, arXiv 2106.09685).

Shapes: B images, N tokens, D width of the backbone, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import Method
from methods.errors import UsageError
from methods.strategy import ExperienceLike
from methods.subspace import energy_threshold
from methods.vit import QKV, Plug, with_changes


class LowRank(nn.Module):
    """x -> x A^T B^T, (..., D) -> (..., D): the weight change B A. It starts at zero, because B does.

    A (r, D) is drawn as kaiming-uniform with a = sqrt(5), as in LoRA's and InfLoRA's code.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)


class LowRankPlug(Plug):
    """Base of plugs that add a low-rank map of the block's input to projections, and can be merged."""

    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """The changes of the weights by projection: (up (D, r), down (r, D)) of the change up down."""
        raise NotImplementedError


class LoraPlug(LowRankPlug):
    """Adds a `LowRank` map of the block's input to each projection named in `targets`, e.g. "kv"."""

    def __init__(self, width: int, rank: int, targets: str) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({target: LowRank(width, rank) for target in targets})

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        return with_changes(q, k, v, self.maps, lambda name: self.maps[name](x))

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """up and down of each map, as they are."""
        return {target: (pair.up, pair.down) for target, pair in self.maps.items()}  # type: ignore[misc]


def check_rank(owner: str, rank: int, model: VisionTransformer, option: str = "rank") -> None:
    """Refuse a rank above the width of the backbone; the message names `option` of `owner`.

    Raises:
        UsageError: naming the width.
    """
    if rank > model.embed_dim:
        raise UsageError(
            f"{owner}.{option} is {rank}; legal: at most the width of the backbone, {model.embed_dim}"
        )


@torch.no_grad()
def merge(qkv: nn.Linear, target: str, up: Tensor, down: Tensor) -> None:
    """Add up (D, r) down (r, D) to the rows of projection `target` in the weight (3D, D), in float64."""
    weight = qkv.weight.chunk(3)["qkv".index(target)]
    weight.copy_(weight.double() + up.double() @ down.double())


class EnergyShares(Protocol):
    """Hyper-parameters that say which share of the energy is protected."""

    @property
    def lamb(self) -> float:
        """Share after the first experience."""

    @property
    def lame(self) -> float:
        """Share it grows towards."""


S = TypeVar("S", bound=EnergyShares)


class SubspaceLora(Method[S]):
    """Base of methods that protect a subspace and merge finished adapters into the projections' weights."""

    def owns(self, name: str) -> bool:
        """The weights of the projections, too: finished adapters are merged into them."""
        return super().owns(name) or name.endswith("attn.qkv.weight")

    def threshold(self, experience: ExperienceLike) -> float:
        """Share of the energy, in [0, 1], that the subspace holds once the experience is over."""
        done, total = experience.current_experience, len(experience.origin_stream)
        return energy_threshold(self.hyper.lamb, self.hyper.lame, done, total)
