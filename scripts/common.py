"""What the measuring scripts share: random images, the harness around a method, timing in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.cell.batches import Pipeline, clean, flipped
from bench.cell.progress import ignore
from bench.cell.rng import generator
from bench.cell.runner import EVAL_BATCH, TICK_SECONDS
from bench.cell.strategy import FiniteLoss, ProgressReporter, Schedule, Strategy, cosine
from bench.probes.latency import round_order

MEAN = STD = (0.5, 0.5, 0.5)

#: Name -> one number a round.
Rounds = dict[str, list[float]]


def random_images(classes: int, per_class: int, side: int) -> tuple[Tensor, Tensor]:
    """uint8 images (classes * per_class, side, side, 3) and labels, class by class; always the same."""
    rng = torch.Generator().manual_seed(0)
    n = classes * per_class
    pixels = torch.randint(0, 256, (n, side, side, 3), generator=rng, dtype=torch.uint8)
    return pixels, torch.arange(n) // per_class


def assemble(
    model: Any,
    method: Any,
    plugins: Sequence[Any],
    *,
    side: int,
    experiences: int,
    batch_size: int,
    epochs: int,
    precision: str,
) -> Strategy:
    """The harness as a cell has it, on the CPU. `plugins`: the method, and what stands around it."""
    pipeline = Pipeline(side, 1.0, MEAN, STD, torch.device("cpu"))
    return Strategy(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_collate=flipped(pipeline, generator(0, "augmentation")),
        eval_collate=clean(pipeline),
        statistics_collate=flipped(pipeline, generator(0, "statistics")),
        order=generator(0, "data order"),
        precision=precision,
        train_mb_size=batch_size,
        train_epochs=epochs,
        eval_mb_size=EVAL_BATCH,
        device=pipeline.device,
        plugins=[*plugins, Schedule(cosine), FiniteLoss(), ProgressReporter(ignore, experiences, TICK_SECONDS)],
    )


def seconds(work: Callable[..., object], *arguments: Any, calls: int = 1) -> float:
    """Wall-clock seconds of a call, the mean of `calls` of them."""
    start = time.perf_counter()
    for _ in range(calls):
        work(*arguments)
    return (time.perf_counter() - start) / calls


def in_turns(works: Mapping[str, Callable[[int], object]], rounds: int, calls: int = 1) -> Rounds:
    """Seconds of one call of each work, in each round after a first one that warms up.

    Each is timed once a round, as the mean of `calls` calls with the round's number. Which goes first moves
    on by one each round, and every other round goes backwards, so that drifting clocks hit all alike.
    """
    found: Rounds = {name: [] for name in works}
    for i in range(rounds + 1):
        for name in round_order(list(works), i):
            found[name].append(seconds(works[name], i, calls=calls))
    return {name: times[1:] for name, times in found.items()}


def ratios(times: Rounds, reference: str) -> Rounds:
    """Each time as a multiple of the reference's in the same round."""
    return {
        name: [a / b for a, b in zip(column, times[reference], strict=True)] for name, column in times.items()
    }
