"""L2P: a pool of input prompts, from which each image's query selects some (arXiv 2112.08654, CVPR 2022).

An image gets the prompts whose keys are nearest to its query (equation 3), as tokens of the sequence, and is
classified by the mean of their outputs (section 4.3). A term of the loss pulls the selected keys towards the
query (equation 5). Prompts and keys are shared by all experiences; nothing protects them.

Follows the official code (google-research/l2p): the tokens have no position embedding, and the loss
*subtracts* the similarities, summed over an image's keys and averaged over the batch. The defaults are the
paper's numbers; --protocol paper is the code's configuration for CIFAR-100, which differs from them in
length=10, top_k=4, pull=1.0, selection=batch.

Shapes: B images, D width, M prompts of L tokens, k prompts per image.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.errors import UsageError
from methods.hyper import STRICT, hyper
from methods.prompts import (
    PoolHyper,
    PoolMethod,
    Prompter,
    cosine_similarity,
    official,
    shared_choices,
    uniform,
)
from methods.registry import register
from methods.vit import InputTokens

PAPER = "the L2P paper"
CODE = "the official code, configs/cifar100_l2p.py"

#: The official code's batch: eight devices with 16 images each. Its rate is 0.03 at a batch of 256.
BATCH = 128


@dataclass(frozen=True, config=STRICT)
class L2PHyper(PoolHyper):
    """Hyper-parameters of L2P."""

    lr: float = hyper(
        3e-3,
        "learning rate of Adam",
        source="chosen on validation, docs/prompts.md; the official code: 0.03 batch / 256, under paper",
        gt=0,
    )
    pool_size: int = hyper(10, "prompts in the pool", source=CODE, ge=1)
    length: int = hyper(5, "tokens of a prompt", source=PAPER + "; 10: " + CODE, unit="tokens", ge=1)
    top_k: int = hyper(5, "prompts an image gets", source=PAPER + "; 4: " + CODE, ge=1)
    pull: float = hyper(
        0.5, "weight of the pull of keys towards queries", source=PAPER + "; 1.0: " + CODE, ge=0
    )


class PromptPool(Prompter):
    """The prompts (M, L, D) and their keys (M, D).

    Attributes:
        selected: (B, k), indices of the prompts of each image of the last pass.
    """

    def __init__(self, vit: VisionTransformer, hyper: L2PHyper) -> None:
        super().__init__()
        self.hyper, self.tokens = hyper, InputTokens(vit)
        self.seams = (self.tokens,)
        self.prompts = uniform(hyper.pool_size, hyper.length, vit.embed_dim, below=hyper.start)
        self.keys = uniform(hyper.pool_size, vit.num_features, below=hyper.start)
        self.selected = torch.empty(0, dtype=torch.long)

    def prompt(self, query: Tensor) -> None:
        nearest = cosine_similarity(query, self.keys.detach()).topk(self.hyper.top_k).indices
        self.selected = shared_choices(nearest, self.hyper)
        tokens = F.embedding(self.selected, self.prompts.flatten(1))
        self.tokens.prompt = tokens.view(len(query), -1, self.prompts.shape[2])

    def penalty(self) -> Tensor:
        """-pull * the mean over images of the sum of their similarities to the selected keys (equation 5)."""
        assert self.query is not None
        similarity = cosine_similarity(self.query, self.keys).gather(1, self.selected)
        return -self.hyper.pull * similarity.sum(1).mean()

    def prompt_weights(self) -> Tensor:
        """1 for a selected prompt, else 0."""
        return F.one_hot(self.selected, len(self.keys)).sum(1).float()


@register("l2p")
class L2P(PoolMethod[L2PHyper]):
    """Trains a shared pool of input prompts; every image gets those whose keys are nearest to its query."""

    Hyper = L2PHyper
    diagnostic_help: ClassVar = {
        "prompt_choices": "share of the experience's test images that were given each prompt; top_k in all",
        "prompts_in_use": "effective number of prompts at test, top_k at least: exp of their shares' entropy",
    }

    @classmethod
    def check(cls, hyper: L2PHyper, experiences: int) -> None:
        """Refuse more prompts per image than there are in the pool, and a size of a vote that is not held."""
        super().check(hyper, experiences)
        if hyper.top_k > hyper.pool_size:
            raise UsageError(
                f"l2p.top_k is {hyper.top_k}; legal: at most l2p.pool_size, which is {hyper.pool_size}"
            )

    @classmethod
    def paper(cls, benchmark: str) -> dict[str, object]:
        """The official configuration; there is one for CIFAR-100 and none for ImageNet-R."""
        epochs: dict[str, object] = {"epochs": 5} if benchmark == "cifar100" else {}
        return official(BATCH) | {"test_batches": "task"} | epochs

    @classmethod
    def paper_options(cls, benchmark: str) -> dict[str, object]:
        """configs/cifar100_l2p.py, whole; the rate is scaled, and the norm taken, in train_continual.py."""
        return {
            "lr": 0.03 * BATCH / 256,
            "length": 10,
            "top_k": 4,
            "pull": 1.0,
            "selection": "batch",
            "clip_over": "all",
        }

    def make_prompter(self, model: VisionTransformer) -> PromptPool:
        return PromptPool(model, self.hyper)
