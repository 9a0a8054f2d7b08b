"""Parts shared by the prompt methods: the query pass, prompts made from it, and statistics of their use.

Every call of the ViT becomes two passes through the same frozen weights. The first is without prompts; the
features that it gives the classifier (the class token's, for a ViT that reads the class token) are the query.
A method makes prompts from the query for the second pass.

Shapes: B images, D width of the features, M prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import DiagnosticValue, H, Method
from methods.errors import UsageError
from methods.head import HeadInit
from methods.hyper import STRICT, Hyper, hyper
from methods.passes import eval_no_grad, frozen_features, in_full_precision
from methods.strategy import StrategyLike, means_by_experience, of_learnt, true_experience
from methods.vit import InputTokens, Prefix, embed, open_seams


class Prompter(nn.Module):
    """The parameters of a prompt method, and how they become prompts; the submodule `prompts` of the ViT.

    `prompt` fills the seams for the queries of a batch; they are emptied after the pass. `penalty` and
    `prompt_weights` are about the last pass.

    Attributes:
        seams: where prompts enter the ViT.
        query: (B, D), float32, of the last pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seams: Sequence[Prefix | InputTokens] = ()
        self.query: Tensor | None = None
        #: Query of the next pass, where it is known without computing it.
        self.known_query: Tensor | None = None

    def prompt(self, query: Tensor) -> None:
        """Set the prompt of every seam for the queries (B, D). Called without mixed precision."""
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """The method's term of the loss, a scalar."""
        raise NotImplementedError

    def prompt_weights(self) -> Tensor:
        """The weight of each prompt in each image's pass, (B, M), without gradient."""
        raise NotImplementedError

    def attach_to(self, vit: VisionTransformer) -> None:
        """Become the submodule `prompts` of `vit`, and turn each of its calls into two passes."""
        vit.prompts = self
        vit.register_forward_pre_hook(self._before)
        vit.register_forward_hook(self._after, always_call=True)

    def _before(self, vit: VisionTransformer, inputs: tuple[Tensor, ...]) -> None:
        images = inputs[0]
        self.query = self.known_query
        if self.query is None:
            with eval_no_grad(vit):
                self.query = embed(vit, images).float()
            # Without it some torch versions reuse the query's casts, which have no gradient (pytorch#158232).
            torch.clear_autocast_cache()
        with in_full_precision(images.device.type):  # in bfloat16, keys that are nearly alike become equal
            self.prompt(self.query)

    def _after(self, vit: VisionTransformer, inputs: object, output: object) -> None:
        self.known_query = None
        for seam in self.seams:
            seam.prompt = None


class PromptMethod(Method[H]):
    """Base of the prompt methods; a subclass makes the prompter."""

    prompter: Prompter
    #: Name of the diagnostic with the mean weight of each prompt, by experience of the test images.
    weights_diagnostic: ClassVar[str] = "prompt_choices"
    asks_for = "augmented"

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__(head_init=head_init, **options)
        #: Of each batch of the last evaluation: experience of the images (B,), prompt weights (B, M).
        self.evaluated: list[tuple[Tensor, Tensor]] = []

    def make_prompter(self, model: VisionTransformer) -> Prompter:
        """The prompts before the first experience."""
        raise NotImplementedError

    def adapt(self, model: VisionTransformer) -> None:
        self.prompter = self.make_prompter(model)
        self.prompter.attach_to(model)

    def before_training_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.evaluated = []
        super().before_training_exp(strategy, **kwargs)

    def before_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.prompter.known_query = frozen_features(strategy)

    def before_eval_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.prompter.known_query = frozen_features(strategy)

    def before_backward(self, strategy: StrategyLike, **kwargs: object) -> None:
        strategy.loss = strategy.loss + self.prompter.penalty()

    def before_eval(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.evaluated = []

    def after_eval_iteration(self, strategy: StrategyLike, **kwargs: object) -> None:
        # Read for these statistics only; the logits exist already.
        self.evaluated.append((true_experience(strategy), self.prompter.prompt_weights()))

    def diagnostics(self) -> dict[str, DiagnosticValue]:
        """Mean prompt weights, a row per experience learnt and evaluated since, and how many are in use."""
        experience, weights = self.of_learnt()
        if not len(experience):
            return self._diagnostics
        rows = means_by_experience(experience, weights)
        in_use = effective_number(weights.mean(0))
        return self._diagnostics | {self.weights_diagnostic: rows, "prompts_in_use": in_use}

    def of_learnt(self) -> tuple[Tensor, Tensor]:
        """Of the evaluated images of experiences learnt: their experience (n,), prompt weights (n, M)."""
        if not self.evaluated or self.model is None:
            return torch.empty(0), torch.empty(0, 0)
        return of_learnt(self.evaluated, len(self.model.head.tasks))


@dataclass(frozen=True, config=STRICT)
class PoolHyper(Hyper):
    """Hyper-parameters that L2P and DualPrompt share, as the code of google-research/l2p has them."""

    clip: float = hyper(
        1.0,
        "largest norm of the gradient",
        source="the official code, configs/*.py: grad_clip_max_norm",
        gt=0,
    )
    clip_over: Literal["trainable", "all"] = hyper(
        "trainable",
        "whose gradients the norm is taken over: what is trained, or all parameters, frozen ones included",
        source="ours, no gradient of a frozen weight is needed; all: the official code, train_continual.py",
    )
    selection: Literal["sample", "batch"] = hyper(
        "sample",
        "whether each image gets its own prompts, or images of a batch share those that most of them select",
        source="sample: L2P, equation 3; batch: the official code, configs/cifar100_*.py: batchwise_prompt",
    )
    vote_size: int = hyper(
        16,
        "consecutive images of a batch that share prompts under selection=batch",
        source="the official code, configs/*_l2p.py: per_device_batch_size, the vote is on each device",
        unit="images",
        ge=1,
    )
    start: float = hyper(
        0.01,
        "prompts and keys start uniformly between 0 and this",
        source="the official code: uniform()",
        gt=0,
    )


P = TypeVar("P", bound=PoolHyper)


class PoolMethod(PromptMethod[P]):
    """Base of L2P and DualPrompt: the gradient is clipped before each step.

    Under clip_over=all the frozen parameters require a gradient from the forward pass of a step to its end,
    so that their gradients can be measured. The optimiser never holds them, and nothing changes them.
    """

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__(head_init=head_init, **options)
        #: The frozen parameters that require a gradient during a step.
        self.measured: list[nn.Parameter] = []

    @classmethod
    def check(cls, hyper: P, experiences: int) -> None:
        """Refuse a changed size of the vote where nothing is voted on."""
        default = cls.Hyper().vote_size
        if hyper.selection == "sample" and hyper.vote_size != default:
            raise UsageError(
                f"{cls.name}.vote_size is {hyper.vote_size}, but {cls.name}.selection=sample does not use "
                f"it; leave it out, or set {cls.name}.selection=batch"
            )

    @classmethod
    def batch_group(cls, hyper: P) -> int | None:
        return hyper.vote_size if hyper.selection == "batch" else None

    @classmethod
    def caveats(cls, hyper: P) -> tuple[str, ...]:
        sentences = []
        if hyper.clip_over == "all":
            sentences.append(
                "the norm for clipping was taken over the gradients of all parameters (clip_over=all): "
                "training time and training memory include a backward pass to the frozen backbone's weights"
            )
        if hyper.selection == "batch":
            sentences.append(
                f"prompts were chosen by batch (selection=batch), {hyper.vote_size} images at a time: a "
                "prediction depends on which images are tested together, and where those come from few tasks "
                "the task identity leaks into it"
            )
        return tuple(sentences)

    def before_training_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        self._release()  # a step that an error ended
        super().before_training_exp(strategy, **kwargs)

    def before_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        super().before_forward(strategy, **kwargs)
        if self.hyper.clip_over == "all":
            self._release()
            self.measured = frozen(strategy.model)
            for parameter in self.measured:
                parameter.grad = None  # what its last step left, if it was trained in an earlier experience
                parameter.requires_grad_(True)

    def before_update(self, strategy: StrategyLike, **kwargs: object) -> None:
        clip_gradients(in_optimizer(strategy.optimizer), self.measured, self.hyper.clip)
        self._release()

    def _release(self) -> None:
        """Freeze the measured parameters again and drop their gradients."""
        for parameter in self.measured:
            parameter.requires_grad_(False)
            parameter.grad = None
        self.measured = []


def shared_choices(choices: Tensor, hyper: PoolHyper) -> Tensor:
    """The prompts (B, k) that images get, from those that their own queries select."""
    return vote(choices, hyper.vote_size) if hyper.selection == "batch" else choices


def vote(choices: Tensor, size: int) -> Tensor:
    """For every row of the choices (B, k), the k that most of its group have; a group is `size` rows in turn.

    The last group is smaller where the rows do not divide.
    """
    return torch.cat([most_frequent(group) for group in torch.split(choices, size)])


def most_frequent(choices: Tensor) -> Tensor:
    """For every row of the choices (B, k), the k indices that most rows have; of equals, the smaller one."""
    counts = torch.bincount(choices.flatten())
    return counts.argsort(descending=True, stable=True)[: choices.shape[1]].expand_as(choices)


def effective_number(weights: Tensor) -> float:
    """exp of the entropy of the weights (M,): M if all are equal, 1 if all but one are zero."""
    return float(torch.special.entr(weights / weights.sum()).sum().exp())


def cosine_similarity(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine similarities (B, M) of queries (B, D) and keys (M, D)."""
    return F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T


def uniform(*shape: int, below: float) -> nn.Parameter:
    """A parameter drawn from U[0, below], as JAX's `uniform` initialiser."""
    return nn.Parameter(torch.rand(shape) * below)


def prefixes(vit: VisionTransformer, blocks: Iterable[int]) -> list[Prefix]:
    """Plug an empty prefix into each of the `blocks`; return them in that order."""
    attentions, seams = open_seams(vit), []
    for block in blocks:
        attentions[block].plug = prefix = Prefix()
        seams.append(prefix)
    return seams


def check_pool(option: str, size: int, experiences: int) -> None:
    """Refuse more experiences than prompts: each experience has at least one that is not shared.

    Raises:
        UsageError: naming `option` and how to set it.
    """
    if experiences > size:
        raise UsageError(
            f"{option} is {size}; {experiences} experiences need a prompt each; "
            f"legal: at least {experiences}; set {option}={experiences}"
        )


def clip_gradients(updated: Sequence[nn.Parameter], measured: Sequence[nn.Parameter], norm: float) -> None:
    """Scale the gradients of `updated` by min(1, norm / N), N the common norm of those of both lists."""
    gradients = [p.grad for p in (*updated, *measured) if p.grad is not None]
    nn.utils.clip_grads_with_norm_(updated, norm, nn.utils.get_total_norm(gradients))


def in_optimizer(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that the optimiser updates."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def frozen(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require no gradient."""
    return [p for p in model.parameters() if not p.requires_grad]


def official(batch_size: int) -> dict[str, object]:
    """The recipe that the official code of L2P and DualPrompt shares, as fields of the protocol."""
    return {
        "backbone": "vit_base_patch16_224.orig_in21k",  # imagenet21k/ViT-B_16.npz
        "normalisation": "unit",  # norm_01 = True
        "augmentation": "small-crop-flip",  # libml/preprocess.py: area from 5 %
        "geometry": "squash",  # libml/input_pipeline.py: resize to (resize_size, resize_size)
        "test_crop": 0.875,  # configs/*.py: input_size 224 of resize_size 256
        "schedule": "constant",  # learning_rate_schedule
        "batch_size": batch_size,
        "head_init": "zero",  # models/vit.py: the kernel of the head
        "drop_last": True,  # libml/input_pipeline.py: batches are of one size
        "class_order": "identity",  # configs/*.py: continual.rand_seed = -1
        "gelu": "tanh",  # models/vit.py: nn.gelu, whose default is approximate
    }
