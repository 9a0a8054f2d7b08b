"""Cells on this machine, as many at a time as it has cores for, each in a separate process; the default."""

from __future__ import annotations

from bench.cores import available_memory, cores
from bench.grid.executors import Parallelism
from bench.grid.executors.processes import ProcessExecutor, describe, threads_per_worker, visible_gpus
from bench.spec import Device, Settings
from methods.registry import register

#: Memory that a cell is expected to take at most: a ViT-B/16 at 224 pixels trains in about as much.
CELL_BYTES = 3 * 2**30


@register("auto")
class AutoExecutor(ProcessExecutor):
    """A `ProcessExecutor` with one worker per core on a CPU, and one worker on a GPU.

    Two small models on a core each are trained faster than one after the other on two cores. The threads of a
    worker follow from the cores and the number of cells in the grid, and from nothing that changes between
    two runs of a command: the last digits of a result depend on them.
    """

    @classmethod
    def parallelism(cls, settings: Settings, device: Device, cells: int) -> Parallelism:
        together = 1 if device == "cuda" else max(1, min(cores(), cells))
        workers = settings.workers or fitting(together, available_memory())
        threads = threads_per_worker(settings, settings.workers or together)
        gpus = visible_gpus() if device == "cuda" else ()
        description = describe(settings, device, workers, threads, gpus[:workers])
        return Parallelism(workers, threads, f"{description} (cells: {cells}, cores: {cores()})")


def fitting(cells: int, memory: int | None) -> int:
    """How many of the cells fit into so many bytes, at least one; all where these are not known."""
    return cells if memory is None else max(1, min(cells, memory // CELL_BYTES))
