"""Resuming a cell: what it needs is saved after each experience, and restored.

On a CPU the numbers are then those of a cell that was never interrupted, bit for bit. So a checkpoint is
used only under the conditions it was made under; otherwise the cell starts from scratch.
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
from bench.cell.manifest import code_sha256, device_name, versions
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
        method: the plugin in the strategy.
        streams: the random streams of its data, by purpose.
        predicted: after each experience that was evaluated, the predicted label of every test image seen so
            far, int32 (n,), in the order of the evaluation.
    """

    strategy: Strategy
    method: Any
    streams: Mapping[str, torch.Generator]
    predicted: dict[int, Tensor] = field(default_factory=dict)


def method_state(saved: Checkpoint) -> dict[str, Tensor]:
    """What `Method.state` returned."""
    return _part(saved, METHOD)


def _part(saved: Checkpoint, prefix: str) -> dict[str, Tensor]:
    tensors = saved.tensors.items()
    return {name.removeprefix(prefix): tensor for name, tensor in tensors if name.startswith(prefix)}


def save(run: CellRun, cell: Cell, folder: Path, measurements: Measurements) -> None:
    """Save what the cell needs to be resumed after this experience, and to have its inference measured.

    Of the earlier checkpoints the one after the first experience stays: its inference is measured, too.

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
        "conditions": conditions(cell, run.method),
    }
    checkpoint.save(Checkpoint(tensors, notes), folder, experiences)
    checkpoint.prune(folder, (1, experiences))


def conditions(cell: Cell, method: Any) -> dict[str, str]:
    """What a number may depend on besides the cell's configuration."""
    machine = {"device": device_name(cell.device), "threads": str(torch.get_num_threads())}
    return machine | code_conditions(type(method))


def code_conditions(method: type) -> dict[str, str]:
    """What a trained model depends on, on any machine: the code and the versions."""
    return {"code": code_sha256(method), **versions()}


def resume_from_checkpoint(run: CellRun, cell: Cell, folder: Path, observe: Observer) -> Measurements | None:
    """Restore the last usable checkpoint of the cell; None where there is none.

    A damaged checkpoint is quarantined, and the one before it is used. One that was made under other
    conditions stays until the first new one replaces it, so a run started with a wrong option can be stopped
    without losing the old checkpoint.
    """
    for path in reversed(checkpoint.list_checkpoints(folder).values()):
        saved = _load_usable(path, conditions(cell, run.method), observe)
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
    before = saved.notes["conditions"]
    if differing := sorted(key for key in {*before, *current} if before.get(key) != current.get(key)):
        differences = ", ".join(_difference(key, before, current) for key in differing)
        observe(
            Notice(
                f"the checkpoint '{path}' was not used, because it was made under other conditions: "
                f"{differences}"
            )
        )
        return None
    return saved


def _difference(key: str, before: Mapping[str, str], current: Mapping[str, str]) -> str:
    return "other code" if key == "code" else f"{key} was {before.get(key)} and is {current.get(key)}"


def _restore(run: CellRun, cell: Cell, saved: Checkpoint) -> Measurements:
    strategy, notes = run.strategy, saved.notes
    learnt = {name: tensor.to(strategy.device) for name, tensor in method_state(saved).items()}
    run.method.restore(strategy.model, learnt)
    run.predicted.update({int(n): labels for n, labels in _part(saved, PREDICTED).items()})
    measurements = from_notes(notes["measurements"])
    strategy.clock.train_exp_counter = measurements.experiences
    restore_rng(run.streams, strategy.device, _part(saved, RANDOM), notes["random"])
    if measurements.experiences < cell.tasks:
        measurements.resumed.append(measurements.experiences)
    return measurements
