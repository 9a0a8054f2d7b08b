"""The classifier: a linear head for the new classes of each experience.

In a domain-incremental stream the classes come again in every experience, and the head of the first one is
shared by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadInit = Literal["zero", "default"]


class ClassHead(nn.Module):
    """A linear head for each experience with new classes; a class id is the class's column in the logits.

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
    experience_of: Tensor  # (C,), the first experience of every class id; 0 for a class not seen yet

    def __init__(self, features: int, init: HeadInit = "zero") -> None:
        super().__init__()
        self.features, self.init = features, init
        self.tasks = nn.ModuleList()
        self.width = 0
        #: The class ids of each experience, as numbers that need not be read off a device.
        self.classes: list[list[int]] = []
        self.register_buffer("columns", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("experience_of", torch.empty(0, dtype=torch.long), persistent=False)

    def grow(self, classes: Sequence[int]) -> nn.Module:
        """Prepare for an experience with these class ids.

        New classes get a head. The heads of classes that come again are trained again, even where they were
        frozen. `tasks` has a module for each experience, with the buffer `classes`.

        Returns:
            The module of the experience: a linear layer, or one without weights where no class is new.
        """
        new = sorted(set(classes).difference(*self.classes))
        for head, earlier in zip(self.tasks, self.classes, strict=True):
            if not set(classes).isdisjoint(earlier):
                head.requires_grad_(True)
        return self._add(self._new_head(new) if new else nn.Module(), classes)

    def _add(self, module: nn.Module, classes: Sequence[int]) -> nn.Module:
        """Make it the module of a new experience with these class ids."""
        module.register_buffer("classes", torch.tensor(sorted(classes), device=self.columns.device))
        self.tasks.append(module)
        self.classes.append(sorted(classes))
        return module

    def _new_head(self, classes: list[int]) -> nn.Linear:
        """A linear layer for classes that were not seen before, trainable; not in `tasks` yet."""
        head = nn.Linear(self.features, len(classes)).to(self.columns.device)
        if self.init == "zero":
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        ids = torch.tensor(classes, device=self.columns.device)
        self.columns = torch.cat([self.columns, ids])
        self.width = max(self.width, max(classes) + 1)
        experience_of = ids.new_zeros(self.width)
        experience_of[: len(self.experience_of)] = self.experience_of
        experience_of[ids] = len(self.tasks)
        self.experience_of = experience_of
        return head

    @property
    def shares_classes(self) -> bool:
        """Whether a class is in several experiences, as in a stream of domains."""
        return len(set().union(*self.classes)) < sum(map(len, self.classes))

    @property
    def heads(self) -> list[nn.Linear]:
        """The linear layers, in the order of their classes in `columns`."""
        return [module for module in self.tasks if isinstance(module, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, 1 + largest class id seen); the logit of a class not seen yet is minus infinity."""
        if not self.tasks:
            raise RuntimeError("the classifier has no classes yet: train on an experience first")
        weight = torch.cat([head.weight for head in self.heads])
        bias = torch.cat([head.bias for head in self.heads])
        return self.spread(F.linear(x, weight, bias))

    def spread(self, logits: Tensor) -> Tensor:
        """(B, rows) -> (B, C): the logits in the columns of their classes."""
        lowest = logits.new_full((len(logits), self.width), -torch.inf)
        return lowest.index_copy(1, self.columns, logits)

    @torch.no_grad()
    def assign(self, classes: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Set the rows of these class ids (n,) to weight (n, D) and bias (n,)."""
        first = 0
        for head in self.heads:
            ids = self.columns[first : first + head.out_features]
            rows, given = (ids[:, None] == classes).nonzero(as_tuple=True)
            head.weight[rows], head.bias[rows] = weight[given], bias[given]
            first += head.out_features


class HeadPerExperience(ClassHead):
    """A linear head for each experience over all its classes, also where they come again.

    A class has a row in the head of each experience that it is in; the largest of their logits counts.
    """

    def grow(self, classes: Sequence[int]) -> nn.Module:
        """Add a head for these class ids; return it, trainable."""
        return self._add(self._new_head(sorted(classes)), classes)

    def spread(self, logits: Tensor) -> Tensor:
        """(B, rows) -> (B, C): the largest logit of each class."""
        lowest = logits.new_full((len(logits), self.width), -torch.inf)
        return lowest.scatter_reduce(1, self.columns.expand_as(logits), logits, "amax")

    @torch.no_grad()
    def assign(self, classes: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Set the head of the last experience, whose class ids these are."""
        self.heads[-1].weight.copy_(weight)
        self.heads[-1].bias.copy_(bias)


def mask_logits(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits (B, C) with all classes but `classes` at minus infinity: the input of the local cross-entropy.

    The gradient of the other classes' logits is exactly zero.
    """
    mask = logits.new_full((logits.shape[1],), -torch.inf)
    mask[list(classes)] = 0.0
    return logits + mask
