"""CLoRA: low-rank maps of all blocks out of one set of shared spaces (Collaborative LoRA, arXiv 2512.24603).

The weight change of projection j of any block is sum over h of D_h Q_h^j U_h, with p pairs of spaces D_h, U_h
that all projections share and small matrices Q_h^j of their own. A regulariser (SADE) keeps the p branches of
a projection from carrying the same. The row convention is the paper's: x -> x D Q U.

Not to be confused with C-LoRA of arXiv 2502.17920 (routing, for continual learning) and C-LoRA of arXiv
2304.06027 (continual diffusion), whose names differ from this one by a hyphen.

Shapes: N tokens, D width of the backbone, p pairs of spaces, r rank of each, m adapted projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.adapter import Adapter
from methods.base import DiagnosticValue
from methods.errors import UsageError
from methods.lora import LowRankPlug
from methods.vit import QKV, open_seams, with_changes

SadeOf = Literal["module", "shared", "base"]
AfterFirst = Literal["train", "freeze"]


class Spaces(nn.Module):
    """The shared spaces: `down` (p, r, D) holds the D_h transposed, `up` (p, r, D) the U_h.

    Each is drawn as the weight of a linear map, kaiming-uniform with a = sqrt(5), separately for each h: with
    equal spaces, p pairs would be worth one.
    """

    def __init__(self, width: int, rank: int, spaces: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(spaces, rank, width))
        self.up = nn.Parameter(torch.empty(spaces, rank, width))
        for down, up in zip(self.down.unbind(), self.up.unbind(), strict=True):
            nn.init.kaiming_uniform_(down.detach(), a=math.sqrt(5))  # from D inputs
            nn.init.kaiming_uniform_(up.detach().T, a=math.sqrt(5))  # from r inputs


class CloraPlug(LowRankPlug):
    """Adds x D Q U to each projection named in `targets`. Q (p, r, r) is its own and zero at the start.

    Args:
        spaces: the shared spaces. The model owns them, not the plug, so that a state has them once.
    """

    def __init__(self, spaces: Spaces, targets: str) -> None:
        super().__init__()
        self._spaces = (spaces,)  # in a tuple: torch does not register it here
        shape = (*spaces.down.shape[:2], spaces.down.shape[1])
        self.mixers = nn.ParameterDict({target: torch.zeros(shape) for target in targets})

    @property
    def spaces(self) -> Spaces:
        """The shared spaces."""
        return self._spaces[0]

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        down = F.linear(x, self.spaces.down.flatten(0, 1))
        down = down.reshape(*x.shape[:-1], *self.spaces.down.shape[:2])  # once for all projections
        return with_changes(q, k, v, self.mixers, lambda name: self._up(down, name))

    def _up(self, down: Tensor, target: str) -> Tensor:
        mixed = torch.einsum("...hr,hrs->...hs", down, self.mixers[target])
        return mixed.flatten(-2) @ self.spaces.up.flatten(0, 1)

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """up (D, p r) made of the Q_h U_h, and the shared down (p r, D); float64."""
        down, up = (t.double() for t in (self.spaces.down, self.spaces.up))
        mixed = {target: mixer.double() @ up for target, mixer in self.mixers.items()}
        return {target: (part.flatten(0, 1).T, down.flatten(0, 1)) for target, part in mixed.items()}


# ---- the regulariser -----------------------------------------------------------------------------


def sade_of_modules(spaces: Spaces, mixers: Sequence[Tensor]) -> Tensor:
    """Mean over projections and pairs h != h' of ||M_h^T M_h'||_F^2 with M_h = D_h Q_h U_h."""
    return overlap(spaces, torch.stack(list(mixers)))


def sade_of_shared(spaces: Spaces, mixers: Sequence[Tensor]) -> Tensor:
    """Mean over pairs h != h' of ||M_h^T M_h'||_F^2 with M_h = D_h U_h, the same for all projections."""
    identity = torch.eye(mixers[0].shape[-1]).to(mixers[0])
    return overlap(spaces, identity.expand(1, *mixers[0].shape))


def sade_of_bases(spaces: Spaces, mixers: Sequence[Tensor]) -> Tensor:
    """Mean over pairs h != h' of ||D_h^T D_h'||_F^2 + ||U_h U_h'^T||_F^2."""
    a, b = pairs(spaces)
    products = (t[a] @ t[b].mT for t in (spaces.down, spaces.up))
    return torch.stack([product.square().sum((-2, -1)) for product in products]).sum(0).mean()


def overlap(spaces: Spaces, mixers: Tensor) -> Tensor:
    """Mean of ||M_h^T M_h'||_F^2 over h != h' and the modules whose Q are in `mixers` (m, p, r, r).

    With K = Q_h^T (D_h^T D_h') Q_h' it is tr(K^T (U_h U_h^T) K (U_h' U_h'^T)): products of r x r matrices.
    """
    a, b = pairs(spaces)
    grams = spaces.up @ spaces.up.mT
    k = mixers[:, a].mT @ (spaces.down[a] @ spaces.down[b].mT) @ mixers[:, b]
    return ((grams[a] @ k @ grams[b]) * k).sum((-2, -1)).mean()


def pairs(spaces: Spaces) -> tuple[Tensor, Tensor]:
    """Indices h < h': the terms of the regulariser are the same for (h, h') and (h', h)."""
    a, b = torch.triu_indices(len(spaces.down), len(spaces.down), 1, device=spaces.down.device)
    return a, b


SADE: Mapping[SadeOf, Callable[[Spaces, Sequence[Tensor]], Tensor]] = {
    "module": sade_of_modules,
    "shared": sade_of_shared,
    "base": sade_of_bases,
}


# ---- the adapter ---------------------------------------------------------------------------------


class Clora(Adapter):
    """Maps on the projections `targets` of every block, out of spaces that `model.spaces` owns."""

    caveats: ClassVar = (
        "CLoRA (arXiv 2512.24603) is a method of parameter-efficient fine-tuning, not of continual learning: "
        "it protects no earlier task, and no class-incremental number of it is published",
        "CLoRA's paper was not available in full: the exact form of SADE, its weight, the number of spaces, "
        "their initial values and the learning rate are this project's",
    )
    diagnostic_help: ClassVar = {
        "sade": "the regulariser SADE after the experience, without its weight",
        "gradient_spaces": "norm of the shared spaces' gradient, summed over projections, at the last step",
        "gradient_mixers": "norm of the gradient of all matrices Q at the last step",
    }

    def plug(self, model: VisionTransformer) -> None:
        rank, spaces = self.hyper.clora_rank, self.hyper.spaces
        self._check(rank, spaces, model.embed_dim)
        self.spaces = model.spaces = Spaces(model.embed_dim, rank, spaces)
        self.mixers: list[Tensor] = []
        for attention in open_seams(model):
            attention.plug = plug = CloraPlug(self.spaces, self.hyper.targets)
            self.mixers += plug.mixers.values()

    def _check(self, rank: int, spaces: int, width: int) -> None:
        if rank * spaces > width:
            raise UsageError(
                f"{self.owner}.clora_rank is {rank} and {self.owner}.spaces is {spaces}; legal: a product of "
                f"at most the width of the backbone, {width}"
            )

    def sade(self) -> Tensor | None:
        """The regulariser without its weight; None with a single pair of spaces, which has no other."""
        return SADE[self.hyper.sade](self.spaces, self.mixers) if self.hyper.spaces > 1 else None

    def penalty(self) -> Tensor | None:
        value = self.sade() if self.hyper.sade_weight else None
        return None if value is None else self.hyper.sade_weight * value

    @torch.no_grad()
    def diagnostics(self) -> dict[str, DiagnosticValue]:
        sade = self.sade()
        return {
            "sade": None if sade is None else sade.item(),
            "gradient_spaces": gradient_norm([self.spaces.down, self.spaces.up]),
            "gradient_mixers": gradient_norm(self.mixers),
        }

    def frozen_after(self, task: int) -> tuple[str, ...]:
        """Under spaces_after_first=freeze the spaces, from the first experience on."""
        return ("spaces.down", "spaces.up") if self.hyper.spaces_after_first == "freeze" else ()

    def merge(self, model: VisionTransformer) -> None:
        super().merge(model)
        del model.spaces


def gradient_norm(parameters: Sequence[Tensor]) -> float | None:
    """Euclidean norm of the gradients of the last step; None if there are none, as in frozen parameters."""
    gradients = [p.grad for p in parameters if p.grad is not None and p.requires_grad]
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else None
