"""What `finetune` trains in place of the frozen backbone: the interface of its adapters.

An adapter is plugged into the model before the first experience, may add a term to the loss and change its
parameters after each step, and is merged into the projections' weights for deployment. It protects nothing:
the same parameters go on through all experiences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.base import DiagnosticValue
from methods.lora import LowRankPlug, merge
from methods.strategy import StrategyLike
from methods.vit import open_seams

if TYPE_CHECKING:
    from methods.finetune import FinetuneHyper


class Adapter:
    """Base of adapters.

    Args:
        owner: name of the method, for messages.
        hyper: the method's hyper-parameters.
    """

    #: Whether the backbone itself is trained, and so part of the state.
    trains_backbone: ClassVar[bool] = False
    #: Warnings that qualify results obtained with it, a sentence each.
    caveats: ClassVar[tuple[str, ...]] = ()
    #: Meaning of every value that `diagnostics` can return, by name.
    diagnostic_help: ClassVar[Mapping[str, str]] = {}

    def __init__(self, owner: str, hyper: FinetuneHyper) -> None:
        self.owner, self.hyper = owner, hyper

    @property
    def lr(self) -> float:
        """Learning rate of Adam."""
        return self.hyper.lr

    def plug(self, model: VisionTransformer) -> None:
        """Plug into the frozen model, or make its parameters trainable."""
        raise NotImplementedError

    def begin(self, strategy: StrategyLike) -> None:
        """Prepare for an experience."""

    def penalty(self) -> Tensor | None:
        """A term that is added to the training loss, one element; None if there is none."""
        return None

    def after_step(self) -> None:
        """Change parameters after a step that the optimiser has taken."""

    def diagnostics(self) -> Mapping[str, DiagnosticValue]:
        """Values about the experience just learnt."""
        return {}

    def frozen_after(self, task: int) -> Iterable[str]:
        """Names, in the model's state, of the adapter's tensors that never change after experience `task`."""
        return ()

    def merge(self, model: VisionTransformer) -> None:
        """Merge every low-rank change into its projection's weight and unplug it."""
        for attention in open_seams(model):
            if isinstance(attention.plug, LowRankPlug):
                for target, (up, down) in attention.plug.factors().items():
                    merge(attention.qkv, target, up, down)
            attention.plug = None
