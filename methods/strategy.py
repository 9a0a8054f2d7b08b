"""Types for method authors: the attributes of an Avalanche strategy that methods use, and a plugin base.

Avalanche passes the strategy to every callback of a plugin. It has no type there that an editor could
complete from, so the parameters are declared here. `StrategyLike` is satisfied by Avalanche's supervised
strategies (`Naive`, ...) and by the harness' own, `bench.cell.strategy.Strategy`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence, Sized
from typing import Protocol

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.avalanche_parts import SupervisedPlugin


class Stream(Protocol):
    """What methods read of an Avalanche stream: its experiences, in order."""

    def __len__(self) -> int:
        """The number of experiences."""

    def __iter__(self) -> Iterator[ExperienceLike]:
        """The experiences."""


class ExperienceLike(Protocol):
    """What methods read of an Avalanche experience, one step of the stream."""

    @property
    def current_experience(self) -> int:
        """Position in the stream, from 0."""

    @property
    def origin_stream(self) -> Stream:
        """The whole stream; its length is the number of experiences."""

    @property
    def classes_in_this_experience(self) -> Collection[int]:
        """Ids of the classes that occur in the experience."""


class ImageData(Protocol):
    """What methods use of an Avalanche data set: a sequence of (image, label, ...)."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> object:
        """Image, label and what else the data set holds, at `index`."""

    def eval(self) -> ImageData:
        """The same images with the transforms of evaluation, so without augmentation."""


class StrategyLike(Protocol):
    """The attributes of an Avalanche strategy that methods use.

    Avalanche declares `experience` and `adapted_dataset` as optional, because they are None outside `train`
    and `eval`; in callbacks they are set. Those of a batch (`mb_x`, `mb_y`, `mb_output`, `loss`) exist in the
    callbacks of an iteration only. `model` may be any module there; methods need a timm ViT, and
    `Method.attach` refuses other models.
    """

    #: Logits (B, C) of the batch; an assignment in `after_forward` changes what the loss is computed from.
    mb_output: Tensor
    #: Loss of the batch, one element; an assignment in `before_backward` changes what is minimised.
    loss: Tensor
    #: Training images of the experience.
    adapted_dataset: ImageData

    @property
    def model(self) -> VisionTransformer:
        """The model that is trained."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser; a method decides which parameters it holds."""

    @property
    def device(self) -> torch.device:
        """Where model and batches are."""

    @property
    def experience(self) -> ExperienceLike:
        """The experience that is trained on or evaluated."""

    @property
    def mb_x(self) -> Tensor:
        """Images (B, 3, S, S) of the batch."""

    @property
    def mb_y(self) -> Tensor:
        """Class ids (B,) of the batch."""

    @property
    def dataloader(self) -> Sized:
        """The batches of an epoch; in training, their number is that of its steps."""

    @property
    def train_epochs(self) -> int:
        """Epochs of an experience."""

    @property
    def eval_mb_size(self) -> int:
        """Batch size of evaluations, and of passes for statistics."""

    def stop_training(self) -> None:
        """Skip the rest of the training of the experience."""


def comes_again(experience: ExperienceLike) -> bool:
    """Whether a class of the experience is in another experience of its stream, as in one of domains."""
    own = set(experience.classes_in_this_experience)
    others = (e for e in experience.origin_stream if e.current_experience != experience.current_experience)
    return any(not own.isdisjoint(other.classes_in_this_experience) for other in others)


def true_experience(strategy: StrategyLike) -> Tensor:
    """(B,) the experience that each image of the evaluated batch belongs to; negative if to none.

    For diagnostics: no prediction may depend on it. The harness' strategy knows it of each image. With any
    other strategy it is the first experience of the image's class or, where experiences share their classes,
    the one that is evaluated.
    """
    ask: Callable[[], Tensor] | None = getattr(strategy, "true_experience", None)
    if ask is not None:
        return ask()
    head = strategy.model.head
    if head.shares_classes:
        return torch.full_like(strategy.mb_y, strategy.experience.current_experience)
    experience: Tensor = head.experience_of[strategy.mb_y]
    return experience


def of_learnt(evaluated: Sequence[tuple[Tensor, Tensor]], experiences: int) -> tuple[Tensor, Tensor]:
    """Of the images of an evaluation that belong to the first `experiences` experiences: the experience (n,)
    of each, and a value (n, ...) of each.

    Args:
        evaluated: the same of all images, batch by batch; at least one batch.
    """
    experience, values = (torch.cat(parts) for parts in zip(*evaluated, strict=True))
    learnt = (experience >= 0) & (experience < experiences)
    return experience[learnt], values[learnt]


def means_by_experience(experience: Tensor, values: Tensor) -> list[list[float]]:
    """The mean of the values (n, M) of each experience that occurs in `experience` (n,), in their order."""
    return [values[experience == e].mean(0).tolist() for e in torch.unique(experience)]


class Plugin(SupervisedPlugin):  # type: ignore[misc]  # Avalanche has no types to check against
    """Avalanche's plugin with typed callbacks, which do nothing here. A subclass overrides some of them.

    `train` calls them in the order below, `eval` those of the second part.
    """

    def before_training(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before the first of the experiences that `train` was called with."""

    def before_train_dataset_adaptation(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before `adapted_dataset` is set."""

    def after_train_dataset_adaptation(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After `adapted_dataset` is set, before data loaders are made of it."""

    def before_training_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before the first epoch of an experience; data, model and optimiser exist."""

    def before_training_epoch(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before each pass over the training images."""

    def before_training_iteration(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before each step; the batch is loaded."""

    def before_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before the forward pass of a step."""

    def after_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the forward pass, before the loss is computed from `mb_output`."""

    def before_backward(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After `loss` is computed, before its gradients are."""

    def after_backward(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the gradients are computed."""

    def before_update(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before the optimiser's step."""

    def after_update(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the optimiser's step."""

    def after_training_iteration(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After each step."""

    def after_training_epoch(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After each pass over the training images."""

    def after_training_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the last epoch of an experience."""

    def after_training(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the last of the experiences that `train` was called with."""

    # ---- evaluation --------------------------------------------------------------------------

    def before_eval(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before the first of the experiences that `eval` was called with."""

    def before_eval_dataset_adaptation(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before `adapted_dataset` is set."""

    def after_eval_dataset_adaptation(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After `adapted_dataset` is set."""

    def before_eval_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before the evaluation of an experience."""

    def before_eval_iteration(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before each batch."""

    def before_eval_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        """Before the forward pass of a batch."""

    def after_eval_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the forward pass of a batch; `mb_output` is there."""

    def after_eval_iteration(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After each batch."""

    def after_eval_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the evaluation of an experience."""

    def after_eval(self, strategy: StrategyLike, **kwargs: object) -> None:
        """After the last of the experiences that `eval` was called with."""
