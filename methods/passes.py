"""Passes over an experience's training images that compute statistics and leave training as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from methods.strategy import ImageData, StrategyLike
from methods.vit import embed

#: Items of a data set -> (images (B, 3, S, S), labels (B,), ...).
Collate = Callable[[list[object]], tuple[Tensor, ...]]


def autocast_of(strategy: object) -> AbstractContextManager[object]:
    """The strategy's mixed-precision context; one that does nothing if it has none, as Avalanche's own."""
    make: Callable[[], AbstractContextManager[object]] = getattr(strategy, "autocast", nullcontext)
    return make()


def in_full_precision(device_type: str) -> AbstractContextManager[object]:
    """A context without mixed precision; one that does nothing if that is off already, to save its cost."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@contextmanager
def eval_no_grad(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; afterwards the model is in the mode it was in.

    A model that is in eval mode is not touched: visiting all its modules takes as long as a small block.
    """
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


def feature_pass(strategy: StrategyLike, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Pass the images of the batches through the blocks, without the classifier, for hooks to read."""
    with eval_no_grad(strategy.model):
        for x, _ in batches:
            with autocast_of(strategy):
                strategy.model.forward_features(x)


def clean_batches(strategy: StrategyLike) -> Iterator[tuple[Tensor, Tensor]]:
    """The experience's training images as in an evaluation: in their order, not augmented.

    Uses neither the strategy's data loader nor any random stream.

    Yields:
        Images (B, 3, S, S) and labels (B,), on the strategy's device.
    """
    for x, y, *_ in _batches(strategy, strategy.adapted_dataset.eval(), _eval_collate(strategy)):
        yield x, y


def frozen_features(strategy: StrategyLike, batch: Sequence[Tensor] | None = None) -> Tensor | None:
    """The features (B, D), float32, of a batch by the backbone as it was before any method adapted it.

    None if they are not kept: the method then computes them. The harness' strategy keeps them where an image
    has one input or two, itself and its mirror image; any other strategy keeps none.

    Args:
        batch: as `strategy`'s loaders give it; by default the current one.
    """
    ask = getattr(strategy, "frozen_features", None)
    features: Tensor | None = None if ask is None else ask(batch)
    return features


def clean_features(strategy: StrategyLike) -> Iterator[tuple[Tensor, Tensor]]:
    """The features of the experience's training images by the frozen backbone, images as in an evaluation.

    Only for methods that never change them (`Method.frozen_backbone`).

    Yields:
        Features (B, D) and labels (B,), on the strategy's device.
    """
    with eval_no_grad(strategy.model):
        for batch in _batches(strategy, strategy.adapted_dataset.eval(), _eval_collate(strategy)):
            features = frozen_features(strategy, batch)
            if features is None:
                with autocast_of(strategy):
                    features = embed(strategy.model, batch[0])
            yield features, batch[1]


def augmented_batches(strategy: StrategyLike) -> Iterator[tuple[Tensor, Tensor]]:
    """As `clean_batches`, with the augmentation of training.

    The harness' strategy has a collate function with a separate random stream for this purpose,
    `statistics_collate`. With any other strategy the state of torch's global generators is restored
    afterwards.
    """
    with torch.random.fork_rng(devices=[strategy.device] if strategy.device.type == "cuda" else []):
        collate = getattr(strategy, "statistics_collate", None)
        for x, y, *_ in _batches(strategy, strategy.adapted_dataset, collate):
            yield x, y


def _eval_collate(strategy: StrategyLike) -> Collate | None:
    collate: Collate | None = getattr(strategy, "eval_collate", None)
    return collate


def _batches(strategy: StrategyLike, images: ImageData, collate: Collate | None) -> Iterator[list[Tensor]]:
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        images,  # type: ignore[arg-type]  # a loader needs no more of a data set than its length and items
        batch_size=strategy.eval_mb_size,
        collate_fn=collate or getattr(images, "collate_fn", None),
        generator=torch.Generator(),  # without one, a loader draws from the global generator
    )
    for batch in loader:
        yield [part.to(strategy.device) for part in batch]
