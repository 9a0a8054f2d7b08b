"""Low-rank adaptation of the attention's projections (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
