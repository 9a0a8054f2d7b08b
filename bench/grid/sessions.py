"""Timing sessions: the inference of trained cells, measured together after the training of the whole grid.

The cells of one session differ in the method only, and the plain timm ViT is timed in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import record
from bench.cell import checkpoint, jobs
from bench.cell.checkpoint import DamagedError
from bench.cell.inputs import Paths
from bench.cell.jobs import Batches
from bench.cell.manifest import code_conditions
from bench.cell.outcome import InferenceResult
from bench.cell.progress import Notice, Observer
from bench.grid.executors.worker_process import Resources, RunFunction, run_in_process
from bench.grid.plan import PlannedCell
from bench.grid.stopping import Stop
from bench.record import Record, RecordError
from bench.spec import Cell
from bench.storage import remove_partial_files
from methods.registry import METHODS

#: Images per call, by device: one, and enough to keep the device busy.
BATCHES: Batches = {"cpu": (1, 32), "cuda": (1, 128)}
#: Cells per session. Each has two models in memory: after the first task and after the last.
MAX_CELLS = 12


def pending_sessions(
    planned: Iterable[PlannedCell], paths: Paths, observe: Observer, max_cells: int = MAX_CELLS
) -> list[tuple[Cell, ...]]:
    """The sessions still to be run: finished cells whose inference is not measured, in groups."""
    by_conditions: dict[Cell, list[Cell]] = {}
    for item in planned:
        if _is_pending(item.cell, paths, observe):
            by_conditions.setdefault(item.cell.without_method(), []).append(item.cell)
    return [
        tuple(cells[i : i + max_cells])
        for cells in by_conditions.values()
        for i in range(0, len(cells), max_cells)
    ]


def _is_pending(cell: Cell, paths: Paths, observe: Observer) -> bool:
    """Whether a cell is finished and not measured, and its checkpoints are usable but for damaged ones."""
    folder = paths.results / cell.id
    checkpoints = checkpoint.list_checkpoints(folder)
    if not checkpoints:
        return False
    try:
        existing = record.read(folder / record.RECORD_NAME)
    except RecordError:  # there is none, or it is damaged, which was reported when the grid was planned
        return False
    if not existing.done:
        return False
    if existing.cost is None or existing.cost.latency is not None:
        checkpoint.delete_all(folder)  # of a repetition that was not finished
        return False
    usable = [n for n, path in checkpoints.items() if _is_usable(cell, path, observe)]
    remaining = list(checkpoint.list_checkpoints(folder))  # without those that were just quarantined
    return cell.tasks in usable and usable == remaining


def _is_usable(cell: Cell, path: Path, observe: Observer) -> bool:
    """Whether a checkpoint is intact and was written by this code; a damaged one is quarantined."""
    try:
        saved = checkpoint.load(path).notes["conditions"]
    except DamagedError as error:
        checkpoint.quarantine(path)
        observe(Notice(f"{error}; it was set aside, and the inference of this model is not measured"))
        return False
    current = code_conditions(METHODS[cell.method.name].load())
    if any(saved.get(key) != value for key, value in current.items()):
        observe(
            Notice(f"the inference of '{path}' is not measured: it was made by other code or other versions")
        )
        return False
    return True


def run_session(
    cells: Sequence[Cell],
    paths: Paths,
    resources: Resources,
    observe: Observer,
    stop: Stop,
    *,
    batches: Batches = BATCHES,
    run: RunFunction = run_in_process,
) -> dict[str, InferenceResult]:
    """Measure the inference of each cell, by its id; every measurement in a separate process.

    Args:
        batches: images per call, by device.
        run: runs a function in a process, as `run_in_process` does.

    Raises:
        KeyboardInterrupt: if a stop was requested.
        DiedError, torch.OutOfMemoryError: if the session cannot be run.
    """
    measure = partial(run, resources=resources, observe=observe, stop=stop)
    memory = {cell.id: measure(jobs.inference_memory, cell, paths, batches) for cell in cells}
    results: dict[str, InferenceResult] = measure(jobs.latencies, cells, paths, batches)
    return {cell: replace(result, memory=memory[cell]) for cell, result in results.items()}


def store_inference(cell: Cell, paths: Paths, result: InferenceResult) -> Record:
    """Add the measurements to the record of a cell, and delete its checkpoints."""
    folder = paths.results / cell.id
    trained = record.read(folder / record.RECORD_NAME)
    assert trained.cost is not None
    changes: dict[str, Any] = {"latency": result.latency, "conditions": result.conditions}
    if trained.cost.peak_memory is not None:
        inference = {"inference": result.memory, "inference_batch": result.memory_batch}
        changes["peak_memory"] = trained.cost.peak_memory.model_copy(update=inference)
    measured = trained.model_copy(update={"cost": trained.cost.model_copy(update=changes)})
    remove_partial_files(folder)
    record.write(measured, folder)
    checkpoint.delete_all(folder)
    return measured
