"""Inference of trained cells: models restored from their checkpoints, merged, and timed in turns.

These functions measure the process they run in, so each call needs a fresh process (`bench.grid.sessions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.cell import checkpoint
from bench.cell.inputs import Inputs, Paths
from bench.cell.jobs import Batches
from bench.cell.manifest import device_name, now
from bench.cell.measurements import from_notes
from bench.cell.outcome import InferenceResult
from bench.cell.precision import autocast
from bench.cell.progress import Observer, ProgressUpdate
from bench.cell.resume import method_state
from bench.cell.rng import seed_everything
from bench.cell.runner import images_like, plain_vit
from bench.costs import Latency, Peak, Timing, TimingConditions
from bench.probes.latency import TimingBudget, TimingSamples, clock_of, time_in_turns
from bench.probes.memory import PeakMemoryTracker
from bench.spec import Cell
from bench.storage import StorageError
from methods.registry import METHODS

#: Timed calls per model and round, for one image and for the larger batch.
CALLS = (5, 2)
#: At most so many rounds, by scale.
ROUNDS = {"smoke": 2, "quick": 40, "full": 40}
#: All rounds of a session take at most this share of what its cells took to train and evaluate,
SHARE = 0.05
#: and at least so many seconds for each batch size.
LEAST_SECONDS = 5.0

PLAIN = "plain timm ViT"


@dataclass(frozen=True)
class DeployedModel:
    """A model in eval mode on its device, and whether all adapters are merged into its weights."""

    model: Any
    merged: bool


def inference_memory(cell: Cell, paths: Paths, batches: Batches, observe: Observer) -> Peak | None:
    """Peak memory of inference with the model after the last task; None where it cannot be measured."""
    tracker = PeakMemoryTracker(_device(cell))
    model = deployed_model(cell, Inputs(paths), max(_checkpoints(cell, paths))).model
    predict = _prediction(model, cell, batches[cell.device][-1])
    with tracker.track():
        for _ in range(2):  # during the second call, the allocator still holds the memory of the first
            predict()
    return tracker.peak


def latencies(
    cells: Sequence[Cell], paths: Paths, batches: Batches, observe: Observer
) -> dict[str, InferenceResult]:
    """Time the models of cells that differ only in the method, in turns; results by cell id."""
    started, first, inputs = now(), cells[0], Inputs(paths)
    models = {
        _key(cell, n): deployed_model(cell, inputs, n) for cell in cells for n in _checkpoints(cell, paths)
    }
    plain = plain_vit(first, inputs)
    seconds = timing_seconds(trained_seconds(cells, paths))
    samples = {}
    for step, (batch, calls) in enumerate(zip(batches[first.device], CALLS, strict=True), start=1):
        functions = {name: _prediction(deployed.model, first, batch) for name, deployed in models.items()}
        functions[PLAIN] = _prediction(plain, first, batch)
        activity = f"{len(functions)} models in turns, batch {batch}"
        observe(ProgressUpdate(activity, step, len(batches[first.device]), steps="part"))
        budget = TimingBudget(ROUNDS[first.scale], calls, seconds)
        samples[batch] = time_in_turns(functions, clock_of(_device(first)), budget, PLAIN)
    return {cell.id: _result(cell, cells, paths, samples, models, started) for cell in cells}


def timing_seconds(trained: float) -> float:
    """Seconds for the rounds of each batch size, where the cells took `trained` seconds."""
    return max(LEAST_SECONDS, SHARE * trained / len(CALLS))


def trained_seconds(cells: Sequence[Cell], paths: Paths) -> float:
    """Seconds that the training and the evaluation of the cells took, by their last checkpoints, verified."""
    lasts = (_checkpoints(cell, paths) for cell in cells)
    notes = (checkpoint.read_notes(each[max(each)])["measurements"] for each in lasts)
    costs = (cost for each in notes for cost in from_notes(each).costs)
    return sum((cost.train_seconds or 0.0) + (cost.eval_seconds or 0.0) for cost in costs)


def deployed_model(cell: Cell, inputs: Inputs, experiences: int) -> DeployedModel:
    """The cell's model after so many experiences, restored from its checkpoint and merged for inference."""
    seed_everything(cell.seed)  # for random weights
    model = inputs.build_backbone(cell)
    method = METHODS[cell.method.name].load()(head_init=cell.protocol.head_init, **cell.method.options)
    saved = checkpoint.load(_checkpoints(cell, inputs.paths)[experiences])
    method.restore(model, method_state(saved))
    merged = method.merge(model)
    return DeployedModel(model.to(_device(cell)).eval(), merged)


def _checkpoints(cell: Cell, paths: Paths) -> dict[int, Path]:
    folder = paths.results / cell.id
    checkpoints = checkpoint.list_checkpoints(folder)
    if not checkpoints:
        raise StorageError(f"the checkpoints in '{folder}' are gone; was the results folder removed?")
    return checkpoints


def _prediction(model: Any, cell: Cell, batch: int) -> Callable[[], None]:
    """A function that computes logits from normalised images on the device, as an evaluation does."""
    device = _device(cell)
    images = images_like(batch, cell.protocol.image_size, device)

    @torch.inference_mode()
    def predict() -> None:
        with autocast(device, cell.protocol.precision):
            model(images)

    return predict


def _result(
    cell: Cell,
    cells: Sequence[Cell],
    paths: Paths,
    samples: Mapping[int, Mapping[str, TimingSamples]],
    models: Mapping[str, DeployedModel],
    started: str,
) -> InferenceResult:
    stages = list(_checkpoints(cell, paths))
    return InferenceResult(
        latency=[
            _latency(n, batch, by_model[_key(cell, n)], by_model[PLAIN])
            for batch, by_model in samples.items()
            for n in stages
        ],
        conditions=TimingConditions(
            device=device_name(cell.device),
            precision=cell.protocol.precision,
            threads=torch.get_num_threads(),
            image_size=cell.protocol.image_size,
            merged=models[_key(cell, stages[-1])].merged,
            beside=[other.method.label for other in cells],
            started=started,
        ),
        memory_batch=max(samples),
    )


def _latency(experiences: int, batch: int, model: TimingSamples, plain: TimingSamples) -> Latency:
    return Latency(
        experiences=experiences,
        batch=batch,
        rounds=model.rounds,
        warmup=model.warmup.calls,
        stable=model.warmup.stable and plain.warmup.stable,
        model=Timing(samples=list(model.samples)),
        plain=Timing(samples=list(plain.samples)),
    )


def _key(cell: Cell, experiences: int) -> str:
    return f"{cell.id} after {experiences}"


def _device(cell: Cell) -> torch.device:
    return torch.device(cell.device)
