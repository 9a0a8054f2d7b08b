"""CODA-Prompt: prefixes that are weighted sums of components (arXiv 2211.13218, CVPR 2023).

In each prompted block, component m has a prompt P_m, a key K_m and an attention A_m. For an image with query
q its weight is cos(q * A_m, K_m) (equation 5), and the image's prefix is the weighted sum of all prompts
(equation 3): the first half of its tokens are keys, the second half values. An experience adds its share of
the components, which the loss trains end to end; those of earlier experiences are frozen.

Follows the present official code (GT-RIPL/CODA-Prompt): new components start from Gram-Schmidt against all
earlier ones, and the orthogonality term has weight 0. Differences: components of experiences to come do not
exist here (the code stores them as zeros and leaves them out of the sum), and the last batch is not dropped.

Shapes: B images, D width, S prompted blocks, M components, L tokens of a component.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.hyper import STRICT, Hyper, hyper
from methods.prompts import Prompter, PromptMethod, check_pool, prefixes
from methods.registry import register
from methods.strategy import StrategyLike
from methods.vit import check_blocks

CODE = "the official code, experiments/*.sh"

#: Lower bound of a norm that is divided by, as in torch's `normalize`.
TINY = 1e-12


@dataclass(frozen=True, config=STRICT)
class CodaPromptHyper(Hyper):
    """Hyper-parameters of CODA-Prompt."""

    lr: float = hyper(
        3e-3,
        "learning rate of Adam",
        source="chosen on validation, docs/prompts.md; 0.001 in the official code: --protocol paper",
        gt=0,
    )
    pool_size: int = hyper(
        100, "components of a block, divided evenly among the experiences, rounded down", source=CODE, ge=1
    )
    length: int = hyper(
        8,
        "tokens of a component: half of them keys, half values",
        source=CODE,
        unit="tokens",
        ge=2,
        multiple_of=2,
    )
    blocks: tuple[int, ...] = hyper(
        (0, 1, 2, 3, 4), "prompted blocks, from 0", source="the official code, models/zoo.py", min_length=1
    )
    ortho: float = hyper(
        0.0,
        "weight of the orthogonality term; the paper's 0.1 stands for 1e-7 here: its code had a further 1e-6",
        source="the official code's README: 0 with its present initialisation",
        ge=0,
    )


class Components(nn.Module):
    """One experience's n components in S blocks: prompts (S, n, L, D), keys and attention (S, n, D).

    n is 0 at first, because it depends on the length of the stream.
    """

    def __init__(self, blocks: int, length: int, width: int, query_width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(blocks, 0, length, width))
        self.keys = nn.Parameter(torch.empty(blocks, 0, query_width))
        self.attention = nn.Parameter(torch.empty(blocks, 0, query_width))


class Assembly(Prompter):
    """The components of all experiences so far, assembled into a prefix for each image and block.

    Attributes:
        weights: (S, B, M), of the components in the last pass.
    """

    def __init__(self, vit: VisionTransformer, hyper: CodaPromptHyper) -> None:
        super().__init__()
        check_blocks("coda-prompt.blocks", hyper.blocks, vit)
        self.hyper, self.width, self.query_width = hyper, vit.embed_dim, vit.num_features
        self.seams = prefixes(vit, hyper.blocks)
        self.experiences = nn.ModuleList()
        self.weights = torch.empty(0)

    def grow(self) -> None:
        """Add an experience, without components yet."""
        shape = len(self.hyper.blocks), self.hyper.length, self.width, self.query_width
        self.experiences.append(Components(*shape))

    def fill(self, n: int) -> None:
        """Give the newest experience n components, orthogonal to all earlier ones as far as possible."""
        for name in ("prompts", "keys", "attention"):
            *earlier, empty = self._of_each(name)
            past = torch.cat([*earlier, empty], 1)
            rows = torch.stack([orthogonal(block.flatten(1), n) for block in past.detach()])
            initial = rows.view(len(rows), n, *empty.shape[2:]).to(empty)
            setattr(self.experiences[-1], name, nn.Parameter(initial))

    def _of_each(self, name: str) -> list[Tensor]:
        return [getattr(components, name) for components in self.experiences]

    def all(self, name: str) -> Tensor:
        """The `prompts`, `keys` or `attention` (S, M, ...) of all experiences."""
        return torch.cat(self._of_each(name), 1)

    def prompt(self, query: Tensor) -> None:
        weights = attend(query, self.all("attention"), self.all("keys"))
        for seam, block in zip(self.seams, self._mixed(weights), strict=True):
            keys, values = block.view(len(query), -1, self.width).chunk(2, 1)
            seam.prompt = (keys, values)
        self.weights = weights.detach()

    def _mixed(self, weights: Tensor) -> Tensor:
        """Sums (S, B, L * D) of the prompts with the weights (S, B, M).

        Experience by experience: joining the prompts first would copy all of them in every pass.
        """
        prompts = [of_experience.flatten(2) for of_experience in self._of_each("prompts")]
        parts = torch.split(weights, [of_experience.shape[1] for of_experience in prompts], 2)
        mixed = torch.bmm(parts[0], prompts[0])
        for part, of_experience in zip(parts[1:], prompts[1:], strict=True):
            mixed = torch.baddbmm(mixed, part, of_experience)
        return mixed

    def penalty(self) -> Tensor:
        """ortho * the sum over blocks and over prompts, keys, attention of mean((X X^T - I)^2)."""
        if self.hyper.ortho == 0:
            return self.weights.new_zeros(())
        names = ("prompts", "keys", "attention")
        return self.hyper.ortho * torch.stack([skewness(self.all(name).flatten(2)) for name in names]).sum()

    def prompt_weights(self) -> Tensor:
        """Mean |weight| over blocks."""
        return self.weights.abs().mean(0)


def attend(query: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """cos(q * A_m, K_m), equation 5: (S, B, M) for queries (B, D), attention and keys (S, M, D).

    Computed as two matrix products, without the B M vectors q * A_m of each block.
    """
    blocks, components, _ = keys.shape
    dots = F.linear(query, (attention * keys).flatten(0, 1))
    squares = F.linear(query.square(), attention.square().flatten(0, 1))
    cosines: Tensor = dots / (squares.sqrt() * keys.norm(dim=2).flatten()).clamp_min(TINY)
    return cosines.view(len(query), blocks, components).transpose(0, 1)


def skewness(rows: Tensor) -> Tensor:
    """Sum over the S blocks of mean((X X^T - I)^2) for their rows X (M, D); 0 if those are orthonormal."""
    products = rows @ rows.mT
    return (products - torch.eye(rows.shape[1], device=rows.device)).square().mean((1, 2)).sum()


def orthogonal(earlier: Tensor, n: int) -> Tensor:
    """n unit rows (n, D) by Gram-Schmidt from Gaussian ones against the rows (m, D) and each other.

    As in the official code, the projections on all rows are subtracted at once, so the result is exactly
    orthogonal only where the earlier rows are orthogonal to each other. Where rows outnumber dimensions, the
    remainder is rounding error, which then gives the direction. In float64 on the CPU: the same on every
    device.
    """
    rows = earlier.double().cpu()
    for _ in range(n):
        gaussian = torch.randn(rows.shape[1], dtype=torch.float64)
        remainder = gaussian - (rows @ gaussian / rows.square().sum(1)) @ rows
        rows = torch.cat([rows, remainder[None] / remainder.norm()])
    return rows[len(earlier) :]


@register("coda-prompt")
class CodaPrompt(PromptMethod[CodaPromptHyper]):
    """Trains prefixes that are assembled from components; each experience adds and trains its share."""

    Hyper = CodaPromptHyper
    prompter: Assembly
    weights_diagnostic: ClassVar = "component_weights"
    diagnostic_help: ClassVar = {
        "component_weights": "mean |weight| of each component over blocks and the experience's test images",
        "prompts_in_use": "effective number of components at test: exp of the entropy of mean |weights|",
    }

    @classmethod
    def check(cls, hyper: CodaPromptHyper, experiences: int) -> None:
        """Refuse more experiences than there are components."""
        check_pool("coda-prompt.pool_size", hyper.pool_size, experiences)

    @classmethod
    def paper(cls, benchmark: str) -> dict[str, object]:
        """The recipe of the official code; epochs are those of the benchmark's full scale."""
        return {
            "backbone": "vit_base_patch16_224.augreg_in21k_ft_in1k",  # timm 0.4.12's vit_base_patch16_224
            "normalisation": "unit",  # dataloaders/utils.py: mean 0, std 1
            "augmentation": "crop-flip",  # dataloaders/utils.py: RandomResizedCrop(224), RandomHorizontalFlip
            "geometry": "whole",  # the same: on PIL images; Resize(256), CenterCrop(224) for ImageNet-R
            "schedule": "coda",  # utils/schedulers.py: CosineSchedule, stepped by epoch
            "batch_size": 128,  # configs/*_prompt.yaml
            "head_init": "default",  # models/zoo.py: nn.Linear
            "drop_last": True,  # trainer.py: the training loader
        }

    @classmethod
    def paper_options(cls, benchmark: str) -> dict[str, object]:
        return {"lr": 1e-3}  # configs/*_prompt.yaml

    def make_prompter(self, model: VisionTransformer) -> Assembly:
        return Assembly(model, self.hyper)

    def grow(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        self.prompter.grow()

    def begin(self, strategy: StrategyLike) -> None:
        self.prompter.fill(self.hyper.pool_size // len(strategy.experience.origin_stream))

    def frozen_after(self, task: int) -> Iterable[str]:
        parts = (f"prompts.experiences.{task}.{name}" for name in ("prompts", "keys", "attention"))
        return (*super().frozen_after(task), *parts)
