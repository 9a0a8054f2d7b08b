"""The classifier of class-incremental learning: one linear head per experience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadInit = Literal["zero", "default"]


class ClassHead(nn.Module):
    """A linear head for each experience; a class id is the class's column in the logits.

    With a separate head per experience, the loss over the current classes trains exactly one head, and the
    others are left out of the optimiser (InfLoRA's code does the same).

    Heads start at zero by default. The cross-entropy over the current classes does not change the mean of a
    head's logits, so a random start would add a different constant to the logits of every experience, and
    those are compared at test time.

    Args:
        features: width D of the input.
        init: "zero", or "default" for that of `nn.Linear`.
    """

    columns: Tensor  # class ids in the order of the heads' rows
    experience_of: Tensor  # (C,), the experience of every class id; 0 for a class not seen yet

    def __init__(self, features: int, init: HeadInit = "zero") -> None:
        super().__init__()
        self.features, self.init = features, init
        self.tasks = nn.ModuleList()
        self.register_buffer("columns", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("experience_of", torch.empty(0, dtype=torch.long), persistent=False)

    def grow(self, classes: Sequence[int]) -> nn.Linear:
        """Add a head for class ids that were not seen before; return it, trainable."""
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
        """(B, D) -> (B, 1 + largest class id seen); the logit of a class not seen yet is minus infinity."""
        if not self.tasks:
            raise RuntimeError("the classifier has no classes yet: train on an experience first")
        weight = torch.cat([head.weight for head in self.tasks])  # type: ignore[misc]
        bias = torch.cat([head.bias for head in self.tasks])  # type: ignore[misc]
        logits = F.linear(x, weight, bias)
        return logits.new_full((len(x), self.width), -torch.inf).index_copy(1, self.columns, logits)


def mask_logits(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits (B, C) with all classes but `classes` at minus infinity: the input of the local cross-entropy.

    The gradient of the other classes' logits is exactly zero.
    """
    mask = logits.new_full((logits.shape[1],), -torch.inf)
    mask[list(classes)] = 0.0
    return logits + mask
