"""What a worker process does for a cell. It imports torch there, not in the command that asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.cell.inputs import Paths
from bench.cell.manifest import RunContext
from bench.cell.outcome import CellResult, InferenceResult
from bench.cell.progress import Observer
from bench.costs import Peak
from bench.spec import Cell

#: Images per call, by device: one, and a larger number.
Batches = Mapping[str, tuple[int, ...]]


def run_cell(cell: Cell, paths: Paths, context: RunContext, observe: Observer, **options: Any) -> CellResult:
    """See `bench.cell.runner.run_cell`."""
    from bench.cell import runner

    return runner.run_cell(cell, paths, context, observe, **options)


def inference_memory(cell: Cell, paths: Paths, batches: Batches, observe: Observer) -> Peak | None:
    """See `bench.cell.inference.inference_memory`."""
    from bench.cell import inference

    return inference.inference_memory(cell, paths, batches, observe)


def latencies(
    cells: Sequence[Cell], paths: Paths, batches: Batches, observe: Observer
) -> dict[str, InferenceResult]:
    """See `bench.cell.inference.latencies`."""
    from bench.cell import inference

    return inference.latencies(cells, paths, batches, observe)
