"""Sequential fine-tuning (SeqLoRA), without protection of earlier tasks: the lower reference.

By default one pair of low-rank maps per block is trained on every experience in turn and never frozen, so
later experiences overwrite what earlier ones learnt (called SeqLoRA in InfLoRA, arXiv 2404.00228). `adapter`
puts something else in the place of these maps:

- `sora`: low-rank maps whose ranks are switched off by training (SoRA, arXiv 2311.11696), `methods/sora.py`;
- `clora`: low-rank maps out of spaces that all blocks share (CLoRA, arXiv 2512.24603), `methods/clora.py`;
- `full`: all weights of the backbone, which other benchmarks call "finetune". Nothing of the backbone is
  frozen then, and the state holds all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from methods.adapter import Adapter
from methods.base import Method, adam
from methods.clora import AfterFirst, Clora, SadeOf
from methods.errors import UsageError
from methods.head import HeadInit
from methods.hyper import STRICT, Hyper, hyper
from methods.lora import LoraPlug, check_rank
from methods.registry import register
from methods.sora import GateInit, GateReset, Sora, Threshold
from methods.strategy import StrategyLike
from methods.vit import open_seams

AdapterName = Literal["lora", "sora", "clora", "full"]

SORA = "SoRA, arXiv 2311.11696"
CLORA = "CLoRA, arXiv 2512.24603"


@dataclass(frozen=True, config=STRICT)
class FinetuneHyper(Hyper):
    """Hyper-parameters of all adapters; `READ_UNDER` says which adapter reads which of them."""

    lr: float = hyper(
        5e-3,
        "learning rate of Adam",
        source="chosen on validation under adapter=lora, docs/defaults.md; not chosen for sora and clora yet",
        gt=0,
    )
    rank: int = hyper(
        10,
        "rank of each low-rank map under adapter=lora",
        source="InfLoRA's code, so that sizes match",
        ge=1,
    )
    targets: str = hyper(
        "kv",
        "projections that are adapted, some of q, k, v",
        source="InfLoRA, section 4.1",
        pattern="^q?k?v?$",
        min_length=1,
    )
    adapter: AdapterName = hyper(
        "lora",
        "what is trained: low-rank maps (lora), low-rank maps with gates that become zero (sora: SoRA, arXiv "
        "2311.11696), low-rank maps out of spaces that all blocks share (clora: CLoRA, arXiv 2512.24603, "
        "neither C-LoRA of 2502.17920 nor C-LoRA of 2304.06027), or all weights of the backbone (full)",
        source="ours",
    )
    full_lr: float = hyper(
        3e-5,
        "learning rate of Adam under adapter=full, in place of lr",
        source="ours: 1e-5, 3e-5 and 1e-4 gave 57.4, 57.1 and 36.6 % on validation of digits, seed 0",
        gt=0,
    )
    sora_rank: int = hyper(
        16,
        "rank of each map under adapter=sora before gates become zero",
        source=f"{SORA}: its code's README names 8 and 16",
        ge=1,
    )
    alpha: float = hyper(
        16.0,
        "scale of SoRA's maps, times their rank at the start",
        source=f"{SORA}: the scripts of its code",
        gt=0,
    )
    dose: float = hyper(
        0.1,
        "sum of SoRA's threshold over the steps of an experience: what a gate loses in it without a gradient",
        source="ours: chosen on validation, docs/defaults.md",
        ge=0,
    )
    threshold: Threshold = hyper(
        "soft",
        "how SoRA thresholds a gate: towards zero and no further (soft), or as the official code, which also "
        "sets a gate below twice the threshold to zero (official)",
        source=f"soft: {SORA}, its README; official: sparse_optimizer.py of its code",
    )
    gate_init: GateInit = hyper(
        "ones",
        "SoRA's gates at the start: all 1 (ones), or standard normal (normal)",
        source=f"ours: an equal start for all ranks; normal: the code of {SORA}",
    )
    gate_reset: GateReset = hyper(
        "none",
        "SoRA's gates at the start of a later experience: as they are (none), or multiplied into the maps "
        "and set to 1, so that ranks which became zero learn again (each_task)",
        source="ours: SoRA knows one task only",
    )
    l1: float = hyper(
        0.0,
        "weight in SoRA's loss of the mean of |g| over all gates of the model: one gate's share falls with "
        "their number",
        source=f"ours: with the threshold it is a second L1 term; the scripts of {SORA} have 10 and 1e-3",
        ge=0,
    )
    clora_rank: int = hyper(
        8, "rank of each shared space under adapter=clora", source=f"{CLORA}, by a note on it", ge=1
    )
    spaces: int = hyper(
        4,
        "pairs of spaces that CLoRA's maps share",
        source="ours: the paper searches it, its choice is not known",
        ge=1,
    )
    sade: SadeOf = hyper(
        "module",
        "what CLoRA's regulariser SADE compares: the branches of each projection (module), the products of "
        "the shared spaces (shared), or the spaces themselves (base)",
        source=f"ours: the exact form in {CLORA} is not known",
    )
    sade_weight: float = hyper(
        1e-2,
        "weight of SADE in the loss",
        source="ours: the paper searches it, its choice is not known",
        ge=0,
    )
    spaces_after_first: AfterFirst = hyper(
        "train",
        "CLoRA's shared spaces after the first experience: trained on (train), or frozen (freeze)",
        source=f"train: {CLORA} knows one task only; freeze is an ablation of ours",
    )


class Lora(Adapter):
    """A low-rank map on the projections `targets` of every block."""

    def plug(self, model: VisionTransformer) -> None:
        check_rank(self.owner, self.hyper.rank, model)
        for attention in open_seams(model):
            attention.plug = LoraPlug(model.embed_dim, self.hyper.rank, self.hyper.targets)


class Full(Adapter):
    """All weights of the backbone: there is nothing to plug in or to merge."""

    trains_backbone: ClassVar = True

    @property
    def lr(self) -> float:
        return self.hyper.full_lr

    def plug(self, model: VisionTransformer) -> None:
        model.requires_grad_(True)


ADAPTERS: Mapping[AdapterName, type[Adapter]] = {"lora": Lora, "sora": Sora, "clora": Clora, "full": Full}

#: The options that are read under each adapter.
READ_UNDER: Mapping[AdapterName, tuple[str, ...]] = {
    "lora": ("lr", "rank", "targets"),
    "sora": ("lr", "targets", "sora_rank", "alpha", "dose", "threshold", "gate_init", "gate_reset", "l1"),
    "clora": ("lr", "targets", "clora_rank", "spaces", "sade", "sade_weight", "spaces_after_first"),
    "full": ("full_lr",),
}


@register("finetune")
class Finetune(Method[FinetuneHyper]):
    """Trains one adapter, or the whole backbone, on every experience; one head per experience."""

    Hyper = FinetuneHyper
    diagnostic_help: ClassVar = {**Sora.diagnostic_help, **Clora.diagnostic_help}

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__(head_init=head_init, **options)
        self.adapter = ADAPTERS[self.hyper.adapter](self.name, self.hyper)
        #: Present during an experience.
        self._step_hook: RemovableHandle | None = None

    @classmethod
    def check(cls, hyper: FinetuneHyper, experiences: int) -> None:
        """Refuse a changed option that the adapter leaves without effect."""
        defaults, legal = FinetuneHyper(), READ_UNDER[hyper.adapter]
        for option in sorted({name for names in READ_UNDER.values() for name in names} - {*legal}):
            if getattr(hyper, option) != getattr(defaults, option):
                others = [name for name, options in READ_UNDER.items() if option in options]
                raise UsageError(
                    f"{cls.name}.{option} is {getattr(hyper, option)}, but {cls.name}.adapter="
                    f"{hyper.adapter} does not use it; legal with it: {', '.join(legal)}; leave {option} "
                    f"out, or set {cls.name}.adapter={' or '.join(others)}"
                )

    @classmethod
    def caveats(cls, hyper: FinetuneHyper) -> tuple[str, ...]:
        """What is not the publication's, under adapters that have one."""
        return ADAPTERS[hyper.adapter].caveats

    def adapt(self, model: VisionTransformer) -> None:
        self.adapter.plug(model)

    def begin(self, strategy: StrategyLike) -> None:
        self.adapter.begin(strategy)
        self._unhook()  # of an experience that did not come to its end
        self._step_hook = strategy.optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Called by the optimiser, not by `after_update`, which comes after a step that was skipped, too."""
        # A GradScaler leaves it to a fused optimiser to skip the step where the scaled loss overflowed.
        overflow: Tensor | None = getattr(optimizer, "found_inf", None)
        if overflow is None or not overflow.item():
            self.adapter.after_step()

    def _unhook(self) -> None:
        if self._step_hook is not None:
            self._step_hook.remove()

    def before_backward(self, strategy: StrategyLike, **kwargs: object) -> None:
        penalty = self.adapter.penalty()
        if penalty is not None:
            strategy.loss = strategy.loss + penalty

    def end(self, strategy: StrategyLike) -> None:
        self._unhook()
        self._diagnostics = dict(self.adapter.diagnostics())

    def frozen_after(self, task: int) -> Iterable[str]:
        """The head, and what the adapter freezes."""
        return (*super().frozen_after(task), *self.adapter.frozen_after(task))

    def owns(self, name: str) -> bool:
        """Under adapter=full all tensors: the whole backbone is trained, and is part of the state."""
        return self.adapter.trains_backbone or super().owns(name)

    def merge(self, model: VisionTransformer) -> bool:
        """All maps: x W^T + x A^T B^T = x (W + B A)^T. Under adapter=full there are none."""
        self.adapter.merge(model)
        return True

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, with the adapter's learning rate."""
        return adam(parameters, self.adapter.lr)
