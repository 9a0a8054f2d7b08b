"""Sequential LoRA (SeqLoRA), without protection of earlier tasks: the lower reference.

One pair of low-rank maps per block is trained on every experience in turn and never frozen, so later
experiences overwrite what earlier ones learnt (called SeqLoRA in InfLoRA, arXiv 2404.00228).

With `tune=full` all weights of the backbone are trained instead: full sequential fine-tuning, which other
benchmarks call "finetune". Nothing of the backbone is frozen then, and the state holds all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from methods.base import Method, adam
from methods.errors import UsageError
from methods.hyper import STRICT, Hyper, hyper
from methods.lora import LoraPlug, LowRank, check_rank, merge
from methods.registry import register
from methods.vit import open_seams

Tune = Literal["lora", "full"]


@dataclass(frozen=True, config=STRICT)
class LoraHyper(Hyper):
    """Hyper-parameters of plain LoRA, and of full fine-tuning in its place."""

    lr: float = hyper(5e-3, "learning rate of Adam", source="chosen on validation, docs/defaults.md", gt=0)
    rank: int = hyper(10, "rank of each low-rank map", source="InfLoRA's code, so that sizes match", ge=1)
    targets: str = hyper(
        "kv",
        "projections that are adapted, some of q, k, v",
        source="InfLoRA, section 4.1",
        pattern="^q?k?v?$",
        min_length=1,
    )
    tune: Tune = hyper(
        "lora", "what is trained: low-rank maps (lora), or all weights of the backbone (full)", source="ours"
    )
    full_lr: float = hyper(
        3e-5,
        "learning rate of Adam under tune=full, in place of lr",
        source="ours: 1e-5, 3e-5 and 1e-4 gave 57.4, 57.1 and 36.6 % on validation of digits, seed 0",
        gt=0,
    )


#: Options that are read under one value of `tune` only.
READ_UNDER: dict[Tune, tuple[str, ...]] = {"lora": ("lr", "rank", "targets"), "full": ("full_lr",)}


@register("finetune")
class Finetune(Method[LoraHyper]):
    """Trains one set of LoRA maps, or the whole backbone, on every experience; one head per experience."""

    Hyper = LoraHyper

    @classmethod
    def check(cls, hyper: LoraHyper, experiences: int) -> None:
        """Refuse a changed option that the value of `tune` leaves without effect."""
        other: Tune = "lora" if hyper.tune == "full" else "full"
        defaults = LoraHyper()
        for option in READ_UNDER[other]:
            if getattr(hyper, option) != getattr(defaults, option):
                legal = ", ".join(READ_UNDER[hyper.tune])
                raise UsageError(
                    f"{cls.name}.{option} is {getattr(hyper, option)}, but {cls.name}.tune={hyper.tune} does "
                    f"not use it; legal with it: {legal}; leave {option} out, or set {cls.name}.tune={other}"
                )

    def adapt(self, model: VisionTransformer) -> None:
        if self.hyper.tune == "full":
            model.requires_grad_(True)
            return
        check_rank(self.name, self.hyper.rank, model)
        for attention in open_seams(model):
            attention.plug = LoraPlug(model.embed_dim, self.hyper.rank, self.hyper.targets)

    def owns(self, name: str) -> bool:
        """Under tune=full all tensors: the whole backbone is trained, and is part of the state."""
        return self.hyper.tune == "full" or super().owns(name)

    def merge(self, model: VisionTransformer) -> bool:
        """All maps: x W^T + x A^T B^T = x (W + B A)^T. Under tune=full there are none."""
        for attention in open_seams(model):
            if isinstance(attention.plug, LoraPlug):
                _merge_plug(attention.qkv, attention.plug)
            attention.plug = None
        return True

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, with `lr` or `full_lr`."""
        lr = self.hyper.full_lr if self.hyper.tune == "full" else self.hyper.lr
        return adam(parameters, lr)


def _merge_plug(qkv: nn.Linear, plug: LoraPlug) -> None:
    for target, pair in plug.maps.items():
        assert isinstance(pair, LowRank)
        merge(qkv, target, pair.up, pair.down)
