"""The classifier of class-incremental learning: one linear head an experience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadInit = Literal["zero", "default"]


class ClassHead(nn.Module):
    """Linear heads that grow with the classes; a class id is its column in the logits.

    Keeping a head of its own for every experience makes the loss over the current classes train
    exactly that head, and leaves the others out of the optimiser (InfLoRA's code does the same).

    Heads start at zero unless asked otherwise. Cross-entropy over the current classes leaves the mean
    of a head's logits where it was initialised, so a random start puts a different noise on every
    experience's logits, and they are compared at test time.
    """

    columns: Tensor
    experience_of: Tensor  # (C,): of every class id, its experience; 0 for one not seen yet

    def __init__(self, features: int, init: HeadInit = "zero") -> None:
        super().__init__()
        self.features, self.init = features, init
        self.tasks = nn.ModuleList()
        self.register_buffer("columns", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("experience_of", torch.empty(0, dtype=torch.long), persistent=False)

    def grow(self, classes: Sequence[int]) -> nn.Linear:
        """Add a head for `classes` (class ids not seen before); return it, trainable."""
        head = nn.Linear(self.features, len(classes)).to(self.columns.device)
        if self.init == "zero":
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        ids = torch.tensor(sorted(classes), device=self.columns.device)
        head.register_buffer("classes", ids)
        self.tasks.append(head)
        self.columns = torch.cat([self.columns, ids])
        self.width = int(self.columns.max()) + 1
        experience_of = ids.new_zeros(self.width)
        experience_of[: len(self.experience_of)] = self.experience_of
        experience_of[ids] = len(self.tasks) - 1
        self.experience_of = experience_of
        return head

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, 1 + largest class id seen); classes not seen yet are at minus infinity."""
        if not self.tasks:
            raise RuntimeError("the classifier has no classes yet: train on an experience first")
        weight = torch.cat([head.weight for head in self.tasks])  # type: ignore[misc]
        bias = torch.cat([head.bias for head in self.tasks])  # type: ignore[misc]
        logits = F.linear(x, weight, bias)
        return logits.new_full((len(x), self.width), -torch.inf).index_copy(1, self.columns, logits)


def mask_logits(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits (B, C) with every class but `classes` at minus infinity: the local cross-entropy's input.

    The gradient of the other classes is exactly zero.
    """
    mask = logits.new_full((logits.shape[1],), -torch.inf)
    mask[list(classes)] = 0.0
    return logits + mask
