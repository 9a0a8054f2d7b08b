"""Sequential LoRA fine-tuning without any protection: the lower reference.

One pair of low-rank maps a block is trained on every experience in turn and never frozen, so whatever
later experiences overwrite is lost (called SeqLoRA in InfLoRA, arXiv 2404.00228).
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer

from methods.base import Method
from methods.hyper import STRICT, Hyper, hyper
from methods.lora import LoraPlug, LowRank, check_rank, merge
from methods.registry import register
from methods.vit import open_seams


@dataclass(frozen=True, config=STRICT)
class LoraHyper(Hyper):
    """Hyper-parameters of plain LoRA."""

    lr: float = hyper(5e-3, "learning rate of Adam", source="chosen on validation, docs/defaults.md", gt=0)
    rank: int = hyper(10, "rank of each low-rank map", source="InfLoRA's code, so that sizes match", ge=1)
    targets: str = hyper(
        "kv",
        "projections that are adapted, some of q, k, v",
        source="InfLoRA, section 4.1",
        pattern="^q?k?v?$",
        min_length=1,
    )


@register("finetune")
class Finetune(Method):
    """Sequential LoRA: local cross-entropy, one head an experience, nothing protected."""

    Hyper = LoraHyper

    def adapt(self, model: VisionTransformer) -> None:
        check_rank(self.name, self.hyper.rank, model)
        for attention in open_seams(model):
            attention.plug = LoraPlug(model.embed_dim, self.hyper.rank, self.hyper.targets)

    def merge(self, model: VisionTransformer) -> bool:
        """All of it: x W^T + x A^T B^T = x (W + B A)^T."""
        for attention in open_seams(model):
            assert isinstance(attention.plug, LoraPlug)
            for target, pair in attention.plug.maps.items():
                assert isinstance(pair, LowRank)
                merge(attention.qkv, target, pair.up, pair.down)
            attention.plug = None
        return True
