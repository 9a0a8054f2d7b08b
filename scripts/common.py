"""Shared by the scripts: planning as `run` does, random images, the harness around a method, timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.cell.backbone import MICRO_NAME
from bench.cell.batches import Pipeline
from bench.cell.inputs import Inputs, paths_from
from bench.cell.progress import ignore
from bench.cell.runner import PROGRESS_SECONDS, build_strategy
from bench.cell.strategy import FiniteLoss, PredictionCollector, ProgressReporter, Strategy
from bench.cli import build_parser, gather
from bench.grid.plan import plan, resolve_device
from bench.probes.latency import round_order
from bench.spec import Cell, Protocol, settings_from

MEAN = STD = (0.5, 0.5, 0.5)

#: By name, one number per round.
Rounds = dict[str, list[float]]


def plan_cells(options: Sequence[str]) -> tuple[list[Cell], Inputs]:
    """The cells that `python -m bench run` would run with these options, and their inputs.

    Raises:
        UsageError: for options that cannot be run.
    """
    settings = settings_from(*gather(build_parser().parse_args(["run", *options])))
    inputs = Inputs(paths_from(settings))
    planned = plan(settings, resolve_device(settings.device, False), inputs, skip_missing=False)
    return [item.cell for item in planned], inputs


def random_images(classes: int, per_class: int, size: int) -> tuple[Tensor, Tensor]:
    """uint8 images (classes * per_class, size, size, 3) and labels, by class; the same at every call."""
    rng = torch.Generator().manual_seed(0)
    n = classes * per_class
    pixels = torch.randint(0, 256, (n, size, size, 3), generator=rng, dtype=torch.uint8)
    return pixels, torch.arange(n) // per_class


def write_images(folder: Path, classes: int, per_class: int, size: int) -> Path:
    """A folder of class folders with `random_images`; returns it."""
    pixels, labels = random_images(classes, per_class, size)
    for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        path = folder / f"{label:03d}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    return folder


def build_harness(
    model: Any,
    method: Any,
    *,
    image_size: int,
    experiences: int,
    batch_size: int,
    epochs: int,
    precision: str,
) -> Strategy:
    """The strategy that trains `model` with `method` as in a cell, on the CPU, with a cell's plugins."""
    values = {"image_size": image_size, "batch_size": batch_size, "epochs": epochs, "precision": precision}
    protocol = Protocol.model_validate({"backbone": MICRO_NAME, **values})  # `model` is built already
    pipeline = Pipeline(image_size, 1.0, MEAN, STD, torch.device("cpu"))
    plugins = [
        FiniteLoss(PROGRESS_SECONDS),
        PredictionCollector(),
        ProgressReporter(ignore, experiences, PROGRESS_SECONDS),
    ]
    return build_strategy(protocol, 0, model, method, pipeline, plugins).strategy


def seconds(function: Callable[..., object], *arguments: Any, calls: int = 1) -> float:
    """Wall-clock seconds of a call, the mean of `calls` of them."""
    start = time.perf_counter()
    for _ in range(calls):
        function(*arguments)
    return (time.perf_counter() - start) / calls


def in_turns(functions: Mapping[str, Callable[[int], object]], rounds: int, calls: int = 1) -> Rounds:
    """Seconds of one call of each function in each round; a first round warms up and is not counted.

    Each function is timed once per round, as the mean of `calls` calls with the round's number. The order is
    that of `round_order`, so that a changing clock frequency affects all functions alike.
    """
    times: Rounds = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name in round_order(list(functions), i):
            times[name].append(seconds(functions[name], i, calls=calls))
    return {name: column[1:] for name, column in times.items()}


def ratios(times: Rounds, reference: str) -> Rounds:
    """Each time as a multiple of the reference's in the same round."""
    return {
        name: [a / b for a, b in zip(column, times[reference], strict=True)] for name, column in times.items()
    }
