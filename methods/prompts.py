"""What the prompt methods share: a query pass, prompts made from it, and what was chosen at test time.

Every call of the ViT becomes two passes through the same frozen weights. The first one is un-prompted; the
features it gives the classifier (the class token's, for a ViT that reads the class token) are the query. A
method makes prompts from the query, the second pass sees them. Shapes: B images, D width, M prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import Method, eval_no_grad
from methods.errors import UsageError
from methods.vit import InputTokens, Prefix, embed, open_seams


class Prompter(nn.Module):
    """What a prompt method puts into a ViT: its submodule `prompts`, with the method's parameters.

    A subclass says in `prompt` what the seams are given for the queries of a batch; they are emptied after
    the pass. The queries are kept: `penalty` and `chosen` speak of the pass that was made last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seams: Sequence[Prefix | InputTokens] = ()
        self.query: Tensor | None = None

    def prompt(self, query: Tensor) -> None:
        """Give the seams the prompts of the queries (B, D). Called without mixed precision."""
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """The method's own term of the loss, a scalar."""
        raise NotImplementedError

    def chosen(self) -> Tensor:
        """How much of each prompt went into each image's pass: (B, M), without gradient."""
        raise NotImplementedError

    def live_in(self, vit: VisionTransformer) -> None:
        """Become a part of `vit` and turn its calls into two passes."""
        vit.prompts = self
        vit.register_forward_pre_hook(self._before)
        vit.register_forward_hook(self._after, always_call=True)

    def _before(self, vit: VisionTransformer, inputs: Any) -> None:
        images = inputs[0]
        with eval_no_grad(vit):
            self.query = embed(vit, images).float()
        with in_full_precision(images.device.type):  # keys that are nearly alike are told apart
            self.prompt(self.query)

    def _after(self, vit: VisionTransformer, inputs: Any, output: Any) -> None:
        for seam in self.seams:
            seam.given = None


class PromptMethod(Method):
    """Base of the prompt methods. A subclass makes the prompter; `choices` names what it chooses among."""

    prompter: Prompter
    choices: ClassVar[str] = "prompt_choices"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.tested: list[tuple[Tensor, Tensor]] = []

    def make_prompter(self, model: VisionTransformer) -> Prompter:
        """The prompts, before the first experience."""
        raise NotImplementedError

    def adapt(self, model: VisionTransformer) -> None:
        self.prompter = self.make_prompter(model)
        self.prompter.live_in(model)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.tested = []
        super().before_training_exp(strategy, *args, **kwargs)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        strategy.loss = strategy.loss + self.prompter.penalty()

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.tested = []

    def after_eval_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        # Labels are read for these statistics only; the logits exist already.
        experience = strategy.model.head.experience_of[strategy.mb_y]
        self.tested.append((experience, self.prompter.chosen()))

    def diagnostics(self) -> dict[str, Any]:
        """`choices`: a line for each experience tested since training: the mean of `chosen` there."""
        if not self.tested:
            return self.found
        experience, chosen = (torch.cat(parts) for parts in zip(*self.tested, strict=True))
        lines = [chosen[experience == e].mean(0).tolist() for e in torch.unique(experience)]
        return self.found | {self.choices: lines, "prompts_in_use": effective_number(chosen.mean(0))}


def in_full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Mixed precision off; where it is off already, entering its context would only take time."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def effective_number(weights: Tensor) -> float:
    """exp of the entropy of the weights (M,): M if all are alike, 1 if one has everything."""
    return float(torch.special.entr(weights / weights.sum()).sum().exp())


def cosine(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine similarities (B, M) of queries (B, D) and keys (M, D)."""
    return F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T


def uniform(*shape: int, below: float) -> nn.Parameter:
    """A parameter drawn from U[0, below], as JAX's `uniform` initialiser."""
    return nn.Parameter(torch.rand(shape) * below)


def prefixes(vit: VisionTransformer, blocks: Iterable[int]) -> list[Prefix]:
    """An empty prefix in each of the `blocks`, in their order."""
    attentions, seams = open_seams(vit), []
    for block in blocks:
        attentions[block].plug = prefix = Prefix()
        seams.append(prefix)
    return seams


def check_pool(option: str, size: int, experiences: int) -> None:
    """Refuse more experiences than there are prompts: each has one of its own, or more.

    Raises:
        UsageError: naming the option and how to set it.
    """
    if experiences > size:
        raise UsageError(
            f"{option} is {size}; {experiences} experiences need a prompt each; "
            f"legal: at least {experiences}; set {option}={experiences}"
        )


def clip(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scale all gradients of the optimiser's parameters so that their common norm is at most `norm`."""
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)


def official(batch_size: int) -> dict[str, Any]:
    """What the official code of L2P and DualPrompt does alike, as fields of the protocol."""
    return {
        "backbone": "vit_base_patch16_224.orig_in21k",  # imagenet21k/ViT-B_16.npz
        "normalisation": "unit",  # norm_01 = True
        "augmentation": "small-crop-flip",  # libml/preprocess.py: area from 5 %
        "schedule": "constant",  # learning_rate_schedule
        "batch_size": batch_size,
        "head_init": "zero",  # models/vit.py: the kernel of the head
    }
