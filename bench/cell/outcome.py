"""What comes out of a cell, for the command that asked for it. Imports neither torch nor Avalanche."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.cell import checkpoint
from bench.cell.inputs import Inputs, Paths
from bench.cell.manifest import RunContext, manifest_of
from bench.costs import Latency, Peak, TimingConditions
from bench.record import SCHEMA, Manifest, Record, Status
from bench.spec import Cell


@dataclass(frozen=True)
class CellResult:
    """The result of running a cell, whether it has finished or not.

    Attributes:
        predictions: content of the predictions file that the record names.
        traceback: of the error that ended the cell.
    """

    record: Record
    predictions: bytes | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class InferenceResult:
    """The measurements of a cell's inference; `memory` is the peak at `memory_batch` images per call."""

    latency: list[Latency]
    conditions: TimingConditions
    memory_batch: int
    memory: Peak | None = None


def resume_hint(cell: Cell, paths: Paths) -> str:
    """The checkpoint from which a cell would be resumed, as the end of a sentence; empty without one."""
    last = max(checkpoint.list_checkpoints(paths.results / cell.id), default=0)
    return f"; its checkpoint after task {last} of {cell.tasks} is kept" if last else ""


def record_without_results(
    cell: Cell, inputs: Inputs, context: RunContext, started: str, status: Status, reason: str
) -> Record:
    """The record of a cell without results."""
    return record_of(cell, manifest_of(cell, inputs, context, started), status, reason, {})


def record_of(
    cell: Cell, manifest: Manifest, status: Status, reason: str | None, results: Mapping[str, Any]
) -> Record:
    """The record of a cell.

    Args:
        results: the fields that only a finished cell has (`measurements.results_of`).
    """
    return Record(
        schema=SCHEMA,
        status=status,
        reason=reason,
        method=cell.method.label,
        benchmark=cell.benchmark.label,
        seed=cell.seed,
        tasks=cell.tasks,
        scenario=cell.scenario,
        config=cell.model_dump(mode="json"),
        class_order=cell.class_order,
        manifest=manifest,
        **results,
    )
