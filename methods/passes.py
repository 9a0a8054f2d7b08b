"""Passes over an experience's training images that compute statistics and leave training as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from methods.strategy import ImageData, StrategyLike

#: Items of a data set -> (images (B, 3, S, S), labels (B,), ...).
Collate = Callable[[list[object]], tuple[Tensor, ...]]


def autocast_of(strategy: object) -> AbstractContextManager[object]:
    """The strategy's mixed-precision context; one that does nothing if it has none, as Avalanche's own."""
    make: Callable[[], AbstractContextManager[object]] = getattr(strategy, "autocast", nullcontext)
    return make()


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
    images = strategy.adapted_dataset.eval()
    yield from _batches(strategy, images, getattr(strategy, "eval_collate", None))


def augmented_batches(strategy: StrategyLike) -> Iterator[tuple[Tensor, Tensor]]:
    """As `clean_batches`, with the augmentation of training.

    The harness' strategy has a collate function with a separate random stream for this purpose,
    `statistics_collate`. With any other strategy the state of torch's global generators is restored
    afterwards.
    """
    with torch.random.fork_rng(devices=[strategy.device] if strategy.device.type == "cuda" else []):
        collate = getattr(strategy, "statistics_collate", None)
        yield from _batches(strategy, strategy.adapted_dataset, collate)


def _batches(
    strategy: StrategyLike, images: ImageData, collate: Collate | None
) -> Iterator[tuple[Tensor, Tensor]]:
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        images,  # type: ignore[arg-type]  # a loader needs no more of a data set than its length and items
        batch_size=strategy.eval_mb_size,
        collate_fn=collate or getattr(images, "collate_fn", None),
        generator=torch.Generator(),  # without one, a loader draws from the global generator
    )
    for x, y, *_ in loader:
        yield x.to(strategy.device), y.to(strategy.device)
