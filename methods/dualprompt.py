"""DualPrompt: shared and experience-specific prefixes (arXiv 2204.04799, ECCV 2022).

A general prompt is put in front of keys and values of the first blocks and trained throughout. Each
experience has an expert prompt for the blocks after them, and one key. Training uses the current experience's
expert and pulls its key towards the queries (equation 6); at test time an image gets the expert whose key is
nearest to its query.

As the official code has it (google-research/l2p): an expert starts from the one before it, its key does not;
the loss *subtracts* the similarity. Keys and values are told apart by name, not by a reshape; the widespread
port of this method mixes them up within a batch. One difference: the keys of experiences to come do not exist
here, while the official code lets test images match them at their random start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.hyper import STRICT, Hyper, hyper
from methods.prompts import Prompter, PromptMethod, check_pool, clip, cosine, official, prefixes, uniform
from methods.registry import register
from methods.vit import check_blocks

CODE = "the official code, configs/cifar100_dualprompt.py"

#: The official code's batch: eight devices with 24 images each.
BATCH = 192


@dataclass(frozen=True, config=STRICT)
class DualPromptHyper(Hyper):
    """Hyper-parameters of DualPrompt."""

    lr: float = hyper(
        3e-2,
        "learning rate of Adam",
        source="chosen on validation, docs/prompts.md; the official code: 0.03 batch / 256, under paper",
        gt=0,
    )
    pool_size: int = hyper(10, "experiences there can be: each has its prompt", source=CODE, ge=1)
    general_blocks: tuple[int, ...] = hyper((0, 1), "blocks of the general prompt, from 0", source=CODE)
    expert_blocks: tuple[int, ...] = hyper(
        (2, 3, 4), "blocks of the expert prompts, from 0", source=CODE, min_length=1
    )
    general_length: int = hyper(
        5, "keys, and as many values, of the general prompt in a block", source=CODE, unit="tokens", ge=1
    )
    expert_length: int = hyper(
        5,
        "keys, and as many values, of an expert prompt in a block",
        source=CODE + "; 20: configs/imr_dualprompt.py for ImageNet-R",
        unit="tokens",
        ge=1,
    )
    pull: float = hyper(1.0, "weight of the pull of a key towards queries", source=CODE, ge=0)
    clip: float = hyper(1.0, "largest norm of the gradient", source=CODE + ": grad_clip_max_norm", gt=0)
    start: float = hyper(
        0.01,
        "prompts and keys start uniformly between 0 and this",
        source="the official code: uniform()",
        gt=0,
    )


class Experts(Prompter):
    """The general prompt (G, 2, L, D) of G blocks; for each experience an expert (E, 2, L, D) and a key (D,).

    The second dimension is: keys, values.
    """

    def __init__(self, vit: VisionTransformer, hyper: DualPromptHyper) -> None:
        super().__init__()
        self.hyper, self.width, self.query_width = hyper, vit.embed_dim, vit.num_features
        blocks = (*hyper.general_blocks, *hyper.expert_blocks)
        check_blocks("dualprompt.general_blocks and dualprompt.expert_blocks together", blocks, vit)
        self.seams = prefixes(vit, blocks)
        self.general = self._prompt(len(hyper.general_blocks), hyper.general_length)
        self.experts = nn.ParameterList()
        self.keys = nn.ParameterList()
        self.selected = torch.empty(0, dtype=torch.long)

    def _prompt(self, blocks: int, length: int) -> nn.Parameter:
        return uniform(blocks, 2, length, self.width, below=self.hyper.start)

    def grow(self) -> None:
        """Add an expert, which starts from the one before it, and its key, which does not."""
        expert = self._prompt(len(self.hyper.expert_blocks), self.hyper.expert_length)
        if len(self.experts):
            expert.data.copy_(self.experts[-1].data)
        self.experts.append(expert)
        self.keys.append(uniform(self.query_width, below=self.hyper.start))
        self.to(self.general.device)

    def prompt(self, query: Tensor) -> None:
        expert = self._current(query) if self.training else self._matched(query)
        given = (*self.general[:, :, None], *expert)
        for seam, (keys, values) in zip(self.seams, given, strict=True):
            seam.given = (keys, values)

    def _current(self, query: Tensor) -> Tensor:
        """The prompt of the experience that is being learnt, for all images: (E, 2, 1, L, D)."""
        last = len(self.experts) - 1
        self.selected = torch.full((len(query),), last, device=query.device)
        expert: Tensor = self.experts[last]
        return expert[:, :, None]

    def _matched(self, query: Tensor) -> Tensor:
        """Each image's prompt by its nearest key: (E, 2, B, L, D)."""
        self.selected = cosine(query, torch.stack(list(self.keys))).argmax(1)
        return torch.stack(list(self.experts), 2)[:, :, self.selected]

    def penalty(self) -> Tensor:
        """-pull * mean similarity of the queries to the current experience's key."""
        assert self.query is not None
        return -self.hyper.pull * cosine(self.query, self.keys[-1][None]).mean()

    def chosen(self) -> Tensor:
        return F.one_hot(self.selected, len(self.experts)).float()


@register("dualprompt")
class DualPrompt(PromptMethod):
    """General and expert prefixes; an image's expert is found by its query."""

    Hyper = DualPromptHyper
    prompter: Experts
    diagnostic_help: ClassVar = {
        "prompt_choices": "share of the experience's test images that were given each expert prompt",
        "prompts_in_use": "effective number of expert prompts at test: exp of the entropy of their shares",
        "task_identity_accuracy": "share of test images that were given the prompt of their own experience",
    }

    @classmethod
    def check(cls, hyper: DualPromptHyper, experiences: int) -> None:
        check_pool("dualprompt.pool_size", hyper.pool_size, experiences)

    @classmethod
    def paper(cls, benchmark: str) -> dict[str, Any]:
        """The official configurations for CIFAR-100 and ImageNet-R."""
        epochs = {"cifar100": 5, "imagenet-r": 50}
        return official(BATCH) | ({"epochs": epochs[benchmark]} if benchmark in epochs else {})

    @classmethod
    def paper_options(cls, benchmark: str) -> dict[str, Any]:
        """configs/cifar100_dualprompt.py, configs/imr_dualprompt.py; rates scaled in train_continual.py."""
        if benchmark == "imagenet-r":
            return {"lr": 0.005 * BATCH / 256, "expert_length": 20}
        return {"lr": 0.03 * BATCH / 256}

    def make_prompter(self, model: VisionTransformer) -> Experts:
        return Experts(model, self.hyper)

    def grow(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        self.prompter.grow()

    def frozen_after(self, task: int) -> Iterable[str]:
        return (*super().frozen_after(task), f"prompts.experts.{task}", f"prompts.keys.{task}")

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        clip(strategy.optimizer, self.hyper.clip)

    def diagnostics(self) -> dict[str, Any]:
        if not self.tested:
            return super().diagnostics()
        own = torch.cat([chosen.gather(1, e[:, None]) for e, chosen in self.tested])
        return super().diagnostics() | {"task_identity_accuracy": own.mean().item()}
