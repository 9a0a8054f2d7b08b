"""InfLoRA: low-rank branches whose input space is designed before training (arXiv 2404.00228, CVPR 2024).

The branch of experience t adds R_t D_t u to the keys and to the values of every block. D_t (r, D) is
designed from the experience's inputs, with the space of earlier inputs removed, then frozen. Only R_t (D, r),
which starts at zero, is trained, one for k and one for v. By the paper's proposition 1 this is the same as
training the weight itself within the span of D_t's rows. DualGPM keeps the space of earlier inputs.

Follows the official code, with three differences that do not change the method: a finished branch is merged
into the weight, so inference costs what the plain ViT costs (the code adds all branches in every pass);
moments are summed in float64; the augmentation of the two passes for statistics has a separate random stream,
so training draws the same numbers with or without them.

Shapes: D width of the backbone, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.hyper import STRICT, Hyper, hyper
from methods.lora import SubspaceLora, check_rank, merge
from methods.passes import augmented_batches, feature_pass
from methods.registry import register
from methods.strategy import StrategyLike
from methods.subspace import DualGpm, Energy, Moment, design, energy_matrix, remember
from methods.vit import QKV, Plug, SeamAttention, open_seams, watching

CODE = "InfLoRA's code, configs/cifar100_inflora.json"


@dataclass(frozen=True, config=STRICT)
class InfLoraHyper(Hyper):
    """Hyper-parameters of InfLoRA."""

    lr: float = hyper(
        5e-3,
        "learning rate of Adam",
        source="chosen on validation, docs/duallora.md; 0.0005 in InfLoRA's code: --protocol paper sets it",
        gt=0,
    )
    rank: int = hyper(10, "rank of a branch", source=CODE, ge=1)
    lamb: float = hyper(
        0.95,
        "share of the energy that is protected after the first experience",
        source=CODE + "; 0.98 for ImageNet-R",
        gt=0,
        le=1,
    )
    lame: float = hyper(
        1.0, "share the threshold grows towards with the number of experiences", source=CODE, gt=0, le=1
    )
    energy: Energy = hyper(
        "sigma4",
        "energy of the inputs: squares of their singular values (sigma2), or fourth powers (sigma4)",
        source="sigma4: InfLoRA's code; sigma2: GPM, arXiv 2103.09762",
    )


class Branch(Plug):
    """The branch of the current experience: a designed, frozen `down` (r, D), an `up` (D, r) for k and v
    each."""

    down: Tensor

    def __init__(self, down: Tensor) -> None:
        super().__init__()
        rank, width = down.shape
        self.register_buffer("down", down)
        self.up_k = nn.Parameter(down.new_zeros(width, rank))
        self.up_v = nn.Parameter(down.new_zeros(width, rank))

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        change_k, change_v = F.linear(F.linear(x, self.down), torch.cat([self.up_k, self.up_v])).chunk(2, -1)
        return q, k + change_k, v + change_v


@register("inflora")
class InfLora(SubspaceLora[InfLoraHyper]):
    """Trains a designed low-rank branch on k and v, merges it after its experience, and updates DualGPM."""

    Hyper = InfLoraHyper
    diagnostic_help: ClassVar = {
        "subspace_size": "dimension of the input space that is protected after the experience",
        "captured_energy": "share of the energy of the experience's inputs, after training, that it holds",
        "threshold": "share of the energy that had to be reached",
    }

    @classmethod
    def paper(cls, benchmark: str) -> dict[str, object]:
        """The recipe of the official code; epochs are those of the benchmark's full scale."""
        return {
            "backbone": "vit_base_patch16_224.augreg_in21k",  # models/vit_inflora.py: the augreg in21k file
            "normalisation": "unit",  # utils/data.py: ToTensor, then mean 0 and std 1
            "augmentation": "crop-flip",  # utils/data.py: RandomResizedCrop(224), RandomHorizontalFlip
            "geometry": "whole",  # the same: on PIL images; Resize(256), CenterCrop(224) for ImageNet-R
            "schedule": "coda",  # utils/schedulers.py: CosineSchedule, stepped by epoch
            "batch_size": 128,  # configs: batch_size
            "head_init": "default",  # models/sinet_inflora.py: nn.Linear
            "class_order": "identity",  # configs: shuffle false, for the seeds 0 to 4
        }

    @classmethod
    def paper_options(cls, benchmark: str) -> dict[str, object]:
        """Those of the official configurations (configs/*.json)."""
        return {"lr": 5e-4, "lamb": 0.98 if benchmark == "imagenet-r" else 0.95}

    def adapt(self, model: VisionTransformer) -> None:
        check_rank(self.name, self.hyper.rank, model)
        self.attentions = open_seams(model)

    def begin(self, strategy: StrategyLike) -> None:
        moments = input_moments(strategy, self.attentions)
        for i, (attention, moment) in enumerate(zip(self.attentions, moments, strict=True)):
            down = design(self.remembered(i, moment), moment.mean, self.hyper.rank)
            attention.plug = Branch(down.to(attention.qkv.weight.dtype))

    def end(self, strategy: StrategyLike) -> None:
        moments = input_moments(strategy, self.attentions)
        threshold = self.threshold(strategy.experience)
        matrices = [energy_matrix(moment.mean, self.hyper.energy) for moment in moments]
        memories = [
            remember(self.remembered(i, moment), m, threshold)
            for i, (moment, m) in enumerate(zip(moments, matrices, strict=True))
        ]
        for i, (attention, memory) in enumerate(zip(self.attentions, memories, strict=True)):
            merge_branch(attention)
            self.memory[f"{i}.basis"] = memory.basis.float()
            self.memory[f"{i}.retained"] = torch.tensor(memory.retained)
        self._diagnostics = {
            "subspace_size": [float(memory.used) for memory in memories],
            "captured_energy": [memory.held(m) for memory, m in zip(memories, matrices, strict=True)],
            "threshold": threshold,
        }

    def merge(self, model: VisionTransformer) -> bool:
        """Nothing is left to merge: each branch is merged at the end of its experience."""
        return True

    def remembered(self, i: int, moment: Moment) -> DualGpm:
        """The memory of block i, on the device of `moment`."""
        device = moment.total.device
        if f"{i}.basis" not in self.memory:
            return DualGpm.empty(len(moment.total), device)
        return DualGpm(self.memory[f"{i}.basis"].to(device), bool(self.memory[f"{i}.retained"]))


def merge_branch(attention: SeamAttention) -> None:
    """Add the products of the attention's branch to its weight, and remove the branch."""
    branch = attention.plug
    assert isinstance(branch, Branch)
    merge(attention.qkv, "k", branch.up_k, branch.down)
    merge(attention.qkv, "v", branch.up_v, branch.down)
    attention.plug = None


def input_moments(strategy: StrategyLike, attentions: Sequence[SeamAttention]) -> list[Moment]:
    """E[u u^T] of every block's normalised input u, over all tokens of the experience's training images."""
    moments = [Moment.zeros(attention.qkv.in_features, strategy.device) for attention in attentions]

    def add(i: int, x: Tensor) -> None:
        moments[i] = moments[i].plus(x)

    with watching(attentions, add):
        feature_pass(strategy, augmented_batches(strategy))
    return moments
