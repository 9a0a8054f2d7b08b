"""Low-rank adaptation of the attention's projections (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.errors import UsageError
from methods.vit import QKV, Plug


class LowRank(nn.Module):
    """x -> x A^T B^T, (..., D) -> (..., D): the change of a weight by B A. Zero at the start, since B is.

    A (r, D) is drawn as kaiming-uniform with a = sqrt(5), as in LoRA's and InfLoRA's code.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)


class LoraPlug(Plug):
    """Adds a `LowRank` map of the block's input to each projection named in `targets`, e.g. "kv"."""

    def __init__(self, width: int, rank: int, targets: str) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({target: LowRank(width, rank) for target in targets})

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        given = {"q": q, "k": k, "v": v}
        q, k, v = (t + self.maps[n](x) if n in self.maps else t for n, t in given.items())
        return q, k, v


def check_rank(owner: str, rank: int, model: VisionTransformer) -> None:
    """Refuse a rank that is above the width of the backbone.

    Raises:
        UsageError: naming the width.
    """
    if rank > model.embed_dim:
        raise UsageError(
            f"{owner}.rank is {rank}; legal: at most the width of the backbone, {model.embed_dim}"
        )


@torch.no_grad()
def merge(qkv: nn.Linear, target: str, up: Tensor, down: Tensor) -> None:
    """Add up (D, r) down (r, D) to the rows of one projection in the weight (3D, D), in float64."""
    weight = qkv.weight.chunk(3)["qkv".index(target)]
    weight.copy_(weight.double() + up.double() @ down.double())
