"""Executors, one module each: they accept cells, run them, and report progress and results.

`EXECUTORS` maps names to classes without importing them. Other packages add theirs through the entry-point
group `duallora_bench.executors`. A class is registered with `methods.registry.register`, has the class
methods of `ExecutorClass`, and opens objects with the methods of `Executor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench.cell.progress import Message, Observer
from bench.grid.stopping import Stop
from bench.spec import Cell, Device, Settings
from methods.registry import Registry

if TYPE_CHECKING:
    from bench.cell.inference import InferenceResult
    from bench.cell.inputs import Paths
    from bench.cell.manifest import RunContext
    from bench.cell.runner import CellResult

EXECUTORS = Registry("executor", "bench.grid.executors", Path(__file__).parent, "duallora_bench.executors")


@dataclass(frozen=True)
class Parallelism:
    """How many cells an executor runs at a time.

    Attributes:
        workers: cells at a time; None for as many as a cluster has room for.
        threads: CPU threads per cell.
        description: what will run where, for people.
    """

    workers: int | None
    threads: int
    description: str


@dataclass(frozen=True)
class CellProgress:
    """A message from a cell that is running."""

    cell: Cell
    message: Message


@dataclass(frozen=True)
class CellFinished:
    """A cell no longer runs.

    Attributes:
        result: what `bench.cell.runner.run_cell` returned; None if it did not return.
        error: what ended it instead.
        timed_out: whether it was stopped because it exceeded its time limit.
    """

    cell: Cell
    result: CellResult | None = None
    error: Exception | None = None
    timed_out: bool = False


class Executor(Protocol):
    """Runs cells. No method blocks for longer than the seconds it is given."""

    def has_capacity(self) -> bool:
        """Whether another cell can be submitted now."""

    def submit(self, cell: Cell) -> None:
        """Start a cell."""

    def poll(self, seconds: float) -> Sequence[CellProgress | CellFinished]:
        """The events since the last call; waits up to `seconds` for the first one."""

    def stop(self) -> None:
        """Ask every running cell to stop, as Ctrl-C does; their results are still polled."""

    def kill(self) -> None:
        """End every running cell at once."""

    def measure_inference(
        self, cells: Sequence[Cell], observe: Observer, stop: Stop
    ) -> dict[str, InferenceResult]:
        """Measure the inference of cells, by cell id, as `bench.grid.sessions.run_session` does.

        Called while no cell runs.

        Raises:
            KeyboardInterrupt: if it was stopped.
            RuntimeError: if the cells cannot be measured.
        """


class ExecutorClass(Protocol):
    """What a registered executor class offers before it is opened."""

    #: Whether cells may run on other machines, so that this one need not have their device.
    remote: bool

    def check(self, settings: Settings) -> None:
        """Refuse settings that do not suit this executor.

        Raises:
            UsageError: saying what to change.
        """

    def parallelism(self, settings: Settings, device: Device) -> Parallelism:
        """How many cells would run at a time, and where."""

    def open(
        self, settings: Settings, device: Device, paths: Paths, context: RunContext
    ) -> AbstractContextManager[Executor]:
        """Start the executor; it ends with the context.

        Raises:
            UsageError: if it cannot be started here.
        """
