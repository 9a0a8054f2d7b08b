"""DualPrompt: shared and experience-specific prefixes (arXiv 2204.04799, ECCV 2022).

A general prompt is put in front of the keys and values of the first blocks and trained in all experiences.
Each experience has an expert prompt for the blocks after them, and one key. Training uses the current
experience's expert and pulls its key towards the queries (equation 6); at test time an image gets the expert
whose key is nearest to its query.

Follows the official code (google-research/l2p): an expert starts from the one before it, its key does not;
the loss *subtracts* the similarity. Keys and values are indexed by a separate dimension; the widespread port
of this method uses a reshape in its place, which mixes them within a batch. One difference: the keys of
experiences to come do not exist here, whereas in the official code test images can match their random initial
values. The code's configuration for CIFAR-100 has test images vote on their expert: selection=batch.

Shapes: B images, D width, G and E blocks with the general and the expert prompts, L keys and as many values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import DiagnosticValue
from methods.hyper import STRICT, hyper
from methods.prompts import (
    PoolHyper,
    PoolMethod,
    Prompter,
    check_pool,
    cosine_similarity,
    official,
    prefixes,
    shared_choices,
    uniform,
)
from methods.registry import register
from methods.vit import check_blocks

CODE = "the official code, configs/cifar100_dualprompt.py"

#: The official code's batch: eight devices with 24 images each.
BATCH = 192


@dataclass(frozen=True, config=STRICT)
class DualPromptHyper(PoolHyper):
    """Hyper-parameters of DualPrompt."""

    lr: float = hyper(
        3e-2,
        "learning rate of Adam",
        source="chosen on validation, docs/prompts.md; the official code: 0.03 batch / 256, under paper",
        gt=0,
    )
    pool_size: int = hyper(10, "largest number of experiences: each has a prompt", source=CODE, ge=1)
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
    vote_size: int = hyper(
        24,
        "consecutive images of a test batch that share an expert under selection=batch",
        source=CODE + ": per_device_batch_size, the vote is on each device",
        unit="images",
        ge=1,
    )


class Experts(Prompter):
    """The general prompt (G, 2, L, D); for each experience an expert prompt (E, 2, L, D) and a key (D,).

    The second dimension is: keys, values.

    Attributes:
        select: chooses experts at test time: queries (B, D), keys of n experiences (n, D) -> indices (B,).
        selected: (B,), index of the expert of each image of the last pass.
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
        self.select: Callable[[Tensor, Tensor], Tensor] = nearest
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
        by_block = (*self.general[:, :, None], *expert)
        for seam, (keys, values) in zip(self.seams, by_block, strict=True):
            seam.prompt = (keys, values)

    def _current(self, query: Tensor) -> Tensor:
        """The prompt (E, 2, 1, L, D) of the experience that is being learnt, for all images."""
        last = len(self.experts) - 1
        self.selected = torch.full((len(query),), last, device=query.device)
        expert: Tensor = self.experts[last]
        return expert[:, :, None]

    def _matched(self, query: Tensor) -> Tensor:
        """The prompts (E, 2, B, L, D) that `select` chooses for the queries (B, D), or a vote on these."""
        chosen = self.select(query, torch.stack(list(self.keys)))
        self.selected = shared_choices(chosen[:, None], self.hyper)[:, 0]
        return torch.stack(list(self.experts), 2)[:, :, self.selected]

    def penalty(self) -> Tensor:
        """-pull * the mean similarity of the queries to the current experience's key (equation 6)."""
        assert self.query is not None
        return -self.hyper.pull * cosine_similarity(self.query, self.keys[-1][None]).mean()

    def prompt_weights(self) -> Tensor:
        """1 for the image's expert, else 0."""
        return F.one_hot(self.selected, len(self.experts)).float()


def nearest(query: Tensor, keys: Tensor) -> Tensor:
    """Index (B,) of the key, of (n, D), that is most similar to each query (B, D)."""
    return cosine_similarity(query, keys).argmax(1)


@register("dualprompt")
class DualPrompt(PoolMethod[DualPromptHyper]):
    """Trains a general prefix and one expert prefix per experience; an image's query selects its expert."""

    Hyper = DualPromptHyper
    prompter: Experts
    diagnostic_help: ClassVar = {
        "prompt_choices": "share of the experience's test images that were given each expert prompt",
        "prompts_in_use": "effective number of expert prompts at test: exp of the entropy of their shares",
        "task_identity_accuracy": "share of test images that were given the prompt of their own experience",
    }

    @classmethod
    def check(cls, hyper: DualPromptHyper, experiences: int) -> None:
        """Refuse more experiences than there are expert prompts, and a size of a vote that is not held."""
        super().check(hyper, experiences)
        check_pool("dualprompt.pool_size", hyper.pool_size, experiences)

    @classmethod
    def paper(cls, benchmark: str) -> dict[str, object]:
        """The official configurations for CIFAR-100 and ImageNet-R; elsewhere that for CIFAR-100."""
        epochs = {"cifar100": 5, "imagenet-r": 50}
        test_batches = "mixed" if benchmark == "imagenet-r" else "task"
        recipe = official(BATCH) | {"test_batches": test_batches}
        return recipe | ({"epochs": epochs[benchmark]} if benchmark in epochs else {})

    @classmethod
    def paper_options(cls, benchmark: str) -> dict[str, object]:
        """configs/cifar100_dualprompt.py, configs/imr_dualprompt.py; rate, clipping: train_continual.py."""
        if benchmark == "imagenet-r":
            return {"lr": 0.005 * BATCH / 256, "expert_length": 20, "clip_over": "all"}
        return {"lr": 0.03 * BATCH / 256, "selection": "batch", "clip_over": "all"}

    def make_prompter(self, model: VisionTransformer) -> Experts:
        return Experts(model, self.hyper)

    def grow(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        self.prompter.grow()

    def frozen_after(self, task: int) -> Iterable[str]:
        return (*super().frozen_after(task), f"prompts.experts.{task}", f"prompts.keys.{task}")

    def diagnostics(self) -> dict[str, DiagnosticValue]:
        experience, weights = self.of_learnt()
        if not len(experience):
            return super().diagnostics()
        own = weights.gather(1, experience[:, None])
        return super().diagnostics() | {"task_identity_accuracy": own.mean().item()}
