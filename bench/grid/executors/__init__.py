"""Executors, one module each: they accept cells, run them, and report progress and results.

`EXECUTORS` maps names to classes without importing them. Other packages add theirs through the entry-point
group `duallora_bench.executors`. A class is registered with `methods.registry.register` and has the class
methods of `ExecutorClass`; `open` returns an `Executor`.
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
    from bench.cell.inputs import Paths
    from bench.cell.manifest import RunContext
    from bench.cell.outcome import CellResult, InferenceResult

EXECUTORS = Registry("executor", "bench.grid.executors", Path(__file__).parent, "duallora_bench.executors")


@dataclass(frozen=True)
class Parallelism:
    """How many cells an executor runs at a time, and with which resources.

    Attributes:
        workers: cells at a time; None for as many as the executor has capacity for.
        threads: CPU threads per cell.
        description: what runs where, in a line for people.
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
    """A cell has ended.

    Attributes:
        result: what `bench.cell.runner.run_cell` returned; None if it did not return.
        error: why it did not return.
        timed_out: whether it was stopped because it exceeded its time limit.
    """

    cell: Cell
    result: CellResult | None = None
    error: Exception | None = None
    timed_out: bool = False


class Executor(Protocol):
    """Runs cells. Only `poll` and `measure_inference` wait; the latter for a whole timing session."""

    def has_capacity(self) -> bool:
        """Whether another cell can be submitted now."""

    def submit(self, cell: Cell) -> None:
        """Start a cell."""

    def poll(self, seconds: float) -> Sequence[CellProgress | CellFinished]:
        """The events since the last call; waits for at most `seconds` if there is none."""

    def stop(self) -> None:
        """Ask every running cell to stop, as Ctrl-C does; their results are still polled."""

    def kill(self) -> None:
        """End every running cell at once."""

    def measure_inference(
        self, cells: Sequence[Cell], observe: Observer, stop: Stop
    ) -> dict[str, InferenceResult]:
        """Measure the inference of cells; returns the results by cell id. Called while no cell runs.

        Most executors call `bench.grid.sessions.run_session`.

        Raises:
            KeyboardInterrupt: if a stop was requested.
            RuntimeError: if the cells cannot be measured.
        """


class ExecutorClass(Protocol):
    """The class methods of a registered executor."""

    #: Whether cells may run on other machines, so that `--device cuda` needs no GPU on this one.
    remote: bool

    def check(self, settings: Settings) -> None:
        """Refuse settings that do not suit this executor.

        Raises:
            UsageError: saying what to change.
        """

    def parallelism(self, settings: Settings, device: Device, cells: int) -> Parallelism:
        """How many cells would run at a time, and with which resources.

        Args:
            cells: in the whole grid, those that are done already included.
        """

    def open(
        self, settings: Settings, device: Device, paths: Paths, context: RunContext
    ) -> AbstractContextManager[Executor]:
        """Start the executor; it ends with the context.

        Args:
            context: has the workers and the threads of `parallelism`.

        Raises:
            UsageError: if it cannot be started here.
        """
