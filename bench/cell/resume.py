"""Resuming a cell: the run is saved after each task, and restored from the last checkpoint.

On a CPU a resumed cell gives the same numbers as one that was never interrupted, bit for bit. Therefore a
checkpoint is used only under the conditions that it was made under; otherwise the cell starts from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cell import checkpoint
from bench.cell.checkpoint import Checkpoint, DamagedError
from bench.cell.manifest import code_conditions, device_name
from bench.cell.measurements import Measurements, as_notes, from_notes
from bench.cell.progress import Notice, Observer
from bench.cell.rng import restore_rng, snapshot_rng
from bench.cell.strategy import Strategy
from bench.spec import Cell

#: Prefixes of the tensors in a checkpoint.
METHOD, RANDOM, PREDICTED = "method.", "random.", "predicted."


@dataclass(frozen=True)
class CellRun:
    """The parts of a running cell.

    Attributes:
        method: the method, which is one of the strategy's plugins.
        streams: the random streams of its data, by purpose.
        predicted: by the number of a task (from 0) after which the model was evaluated, the predicted labels
            int32 (n,) of the test images that it was evaluated on (`stream.EVALUATED`), by row.
    """

    strategy: Strategy
    method: Any
    streams: Mapping[str, torch.Generator]
    predicted: dict[int, Tensor] = field(default_factory=dict)


def method_state(saved: Checkpoint) -> dict[str, Tensor]:
    """The method's part of a checkpoint, as `Method.state` returned it."""
    return _part(saved, METHOD)


def _part(saved: Checkpoint, prefix: str) -> dict[str, Tensor]:
    tensors = saved.tensors.items()
    return {name.removeprefix(prefix): tensor for name, tensor in tensors if name.startswith(prefix)}


def save(run: CellRun, cell: Cell, folder: Path, measurements: Measurements) -> None:
    """Write a checkpoint, for resuming the cell after this task and for measuring its inference.

    Earlier checkpoints are deleted, except the one after the first task, whose inference is measured, too.

    Raises:
        StorageError: if it cannot be written.
    """
    experiences = measurements.experiences
    random_tensors, random_notes = snapshot_rng(run.streams, run.strategy.device)
    tensors = {METHOD + name: tensor for name, tensor in run.method.state().items()}
    tensors |= {RANDOM + name: tensor for name, tensor in random_tensors.items()}
    tensors |= {f"{PREDICTED}{n}": labels for n, labels in run.predicted.items()}
    notes = {
        "measurements": as_notes(measurements),
        "random": random_notes,
        "conditions": conditions(cell, run),
    }
    checkpoint.save(Checkpoint(tensors, notes), folder, experiences)
    checkpoint.prune(folder, (1, experiences))


def conditions(cell: Cell, run: CellRun) -> dict[str, str]:
    """The conditions that a number may depend on, besides the cell's configuration.

    The last digits of features depend on the batches that they are computed in, which are others where they
    are kept.
    """
    kept = "computed every time" if run.strategy.features is None else "kept"
    return machine_conditions(cell) | code_conditions(type(run.method)) | {"features": kept}


def machine_conditions(cell: Cell) -> dict[str, str]:
    """The conditions of this machine that a number may depend on."""
    return {"device": device_name(cell.device), "threads": str(torch.get_num_threads())}


def resume_from_checkpoint(run: CellRun, cell: Cell, folder: Path, observe: Observer) -> Measurements | None:
    """Restore the last usable checkpoint of the cell; None if there is none.

    A damaged checkpoint is quarantined, and the one before it is used. One that was made under other
    conditions stays until the first new one replaces it, so a run started with a wrong option can be stopped
    without losing the old checkpoint.
    """
    for path in reversed(checkpoint.list_checkpoints(folder).values()):
        saved = _load_usable(path, conditions(cell, run), observe)
        if saved is not None:
            measurements = _restore(run, cell, saved)
            observe(Notice(f"it continues after task {measurements.experiences} of {cell.tasks}"))
            return measurements
    return None


def _load_usable(path: Path, current: Mapping[str, str], observe: Observer) -> Checkpoint | None:
    try:
        saved = checkpoint.load(path)
    except DamagedError as error:
        checkpoint.quarantine(path)
        observe(
            Notice(f"{error}; it was set aside, and the cell continues from an earlier one or from scratch")
        )
        return None
    previous = saved.notes["conditions"]
    if differing := sorted(key for key in {*previous, *current} if previous.get(key) != current.get(key)):
        differences = ", ".join(_difference(key, previous, current) for key in differing)
        observe(
            Notice(
                f"the checkpoint '{path}' was not used, because it was made under other conditions: "
                f"{differences}"
            )
        )
        return None
    return saved


def _difference(key: str, previous: Mapping[str, str], current: Mapping[str, str]) -> str:
    return "other code" if key == "code" else f"{key} was {previous.get(key)} and is {current.get(key)}"


def _restore(run: CellRun, cell: Cell, saved: Checkpoint) -> Measurements:
    strategy, notes = run.strategy, saved.notes
    state = {name: tensor.to(strategy.device) for name, tensor in method_state(saved).items()}
    run.method.restore(strategy.model, state)
    run.predicted.update({int(n): labels for n, labels in _part(saved, PREDICTED).items()})
    measurements = from_notes(notes["measurements"])
    strategy.clock.train_exp_counter = measurements.experiences
    restore_rng(run.streams, strategy.device, _part(saved, RANDOM), notes["random"])
    if measurements.experiences < cell.tasks:
        measurements.resumed.append(measurements.experiences)
    return measurements
