"""SoRA: low-rank maps whose ranks have gates that training drives to zero (arXiv 2311.11696).

Per projection the weight changes by s B diag(g) A with s = alpha / rank. After each step of the optimiser the
gates are thresholded, so that those which the loss does not hold up become exactly zero. Where the name is
used for other things: this is sparse low-rank adaptation, EMNLP 2023.

The threshold is not copied from the official scripts: what matters is its sum over the steps of an experience
against the size of a new gate, and 3e-4 is nothing over the few steps of a task. `dose` is that sum.

Shapes: B images, N tokens, D width of the backbone, r rank, G all gates of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.adapter import Adapter
from methods.base import DiagnosticValue
from methods.lora import LowRankPlug, check_rank
from methods.strategy import StrategyLike
from methods.vit import QKV, open_seams, with_changes

if TYPE_CHECKING:
    from methods.finetune import FinetuneHyper

Threshold = Literal["soft", "official"]
GateInit = Literal["ones", "normal"]
GateReset = Literal["none", "each_task"]


def soft_threshold(gates: Tensor, size: float) -> Tensor:
    """Every gate `size` nearer to zero, and zero if it was not further away."""
    return F.softshrink(gates, size)


def official_threshold(gates: Tensor, size: float) -> Tensor:
    """As sparse_optimizer.py of TsinghuaC3I/SoRA at c275ac2: three masks, each on what the last one left.

    A gate between `size` and twice `size` is therefore zero, and one of exactly `size` stays as it is.
    """
    gates = torch.where(gates > size, gates - size, gates)
    gates = torch.where(gates < -size, gates + size, gates)
    return torch.where(gates.abs() < size, 0.0, gates)


THRESHOLDS: Mapping[Threshold, Callable[[Tensor, float], Tensor]] = {
    "soft": soft_threshold,
    "official": official_threshold,
}

#: Shape -> the gates before the first experience.
GATES: Mapping[GateInit, Callable[[int], Tensor]] = {"ones": torch.ones, "normal": torch.randn}


class GatedLowRank(nn.Module):
    """x -> s ((x A^T) g) B^T, (..., D) -> (..., D): the weight change s B diag(g) A, zero at first as B is.

    A (r, D) is drawn as kaiming-uniform with a = sqrt(5). s = alpha / r stays when gates become zero.

    Args:
        gate: the gates (r,), none of them zero: with B = 0 a zero gate would never get a gradient.
    """

    def __init__(self, width: int, gate: Tensor, alpha: float) -> None:
        super().__init__()
        rank = len(gate)
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.gate = nn.Parameter(gate)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down) * (self.scale * self.gate), self.up)

    def pruned(self) -> tuple[Tensor, Tensor]:
        """(s B diag(g), A), float64, without the ranks whose gate is zero."""
        active = self.gate != 0
        gate = self.scale * self.gate[active].double()
        return self.up[:, active].double() * gate, self.down[active]

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the gates into B and set them to 1: the map stays, and every rank can learn again."""
        self.up.mul_(self.gate)
        self.gate.fill_(1.0)


class SoraPlug(LowRankPlug):
    """Adds a `GatedLowRank` map of the block's input to each projection named in the keys of `maps`."""

    def __init__(self, maps: Mapping[str, GatedLowRank]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict(maps)

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        return with_changes(q, k, v, self.maps, lambda name: self.maps[name](x))

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Those of the active ranks."""
        return {target: gated.pruned() for target, gated in self.maps.items()}  # type: ignore[operator]


class Sora(Adapter):
    """Gated low-rank maps on the projections `targets` of every block."""

    caveats: ClassVar = (
        "SoRA (arXiv 2311.11696) is a method of parameter-efficient fine-tuning, not of continual learning: "
        "it protects no earlier task, and no class-incremental number of it is published",
        "SoRA's dose of sparsity, its gates' start at one, the rate of finetune and no weight decay are this "
        "project's choices",
    )
    diagnostic_help: ClassVar = {
        **{
            f"active_rank_{target}": f"gates of the {target} projection that are not exactly zero, by block"
            for target in "qkv"
        },
        "revived_gates": "times that a zero gate became non-zero again during the experience, by block",
        "gate_threshold": "what the threshold takes from a gate at each step: dose / steps of the experience",
    }

    def __init__(self, owner: str, hyper: FinetuneHyper) -> None:
        super().__init__(owner, hyper)
        self.threshold = THRESHOLDS[hyper.threshold]

    def plug(self, model: VisionTransformer) -> None:
        rank, alpha, new_gates = self.hyper.sora_rank, self.hyper.alpha, GATES[self.hyper.gate_init]
        check_rank(self.owner, rank, model, option="sora_rank")
        #: The maps of each block by projection.
        self.blocks: list[dict[str, GatedLowRank]] = []
        for attention in open_seams(model):
            maps = {t: GatedLowRank(model.embed_dim, new_gates(rank), alpha) for t in self.hyper.targets}
            attention.plug = SoraPlug(maps)
            self.blocks.append(maps)
        self.gates: list[Tensor] = [gated.gate for maps in self.blocks for gated in maps.values()]

    def begin(self, strategy: StrategyLike) -> None:
        """Set the threshold of a step and, under gate_reset=each_task, let every rank learn again."""
        self.size = self.hyper.dose / (len(strategy.dataloader) * strategy.train_epochs)
        if self.hyper.gate_reset == "each_task":
            for maps in self.blocks if strategy.experience.current_experience else []:
                for gated in maps.values():
                    gated.fold()
        self.zero = self.all_gates() == 0
        self.revived = torch.zeros_like(self.zero, dtype=torch.long)

    def all_gates(self) -> Tensor:
        """(G,), block by block."""
        return torch.cat([gate.detach() for gate in self.gates])

    def penalty(self) -> Tensor | None:
        """`l1` times the mean of |g| over all gates, so that one gate's weight falls with their number."""
        if self.hyper.l1 == 0:
            return None
        return self.hyper.l1 * torch.cat(self.gates).abs().mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Threshold all gates, and count those that were zero and are not any more."""
        gates = self.threshold(self.all_gates(), self.size)
        torch._foreach_copy_(self.gates, list(gates.view(len(self.gates), -1).unbind()))
        zero = gates == 0
        self.revived += self.zero & ~zero
        self.zero = zero

    def diagnostics(self) -> dict[str, DiagnosticValue]:
        revived = self.revived.reshape(len(self.blocks), -1).sum(1)
        return {
            **{
                f"active_rank_{target}": [float((maps[target].gate != 0).sum()) for maps in self.blocks]
                for target in self.hyper.targets
            },
            "revived_gates": [float(count) for count in revived],
            "gate_threshold": self.size,
        }
