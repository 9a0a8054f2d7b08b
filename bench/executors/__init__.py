"""How cells are spread: a file an executor, each with a crew that works on cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.plan import Planned
from bench.progress import News, Observe
from bench.spec import Cell
from bench.stopping import Stop


@dataclass(frozen=True)
class Told:
    """News of a cell that is being worked on."""

    cell: Cell
    news: News


@dataclass(frozen=True)
class Left:
    """A cell is no longer worked on: what `bench.runner.run_cell` returned, or what came instead.

    `overdue`: it was stopped because its time was up.
    """

    cell: Cell
    ended: Any = None
    error: Exception | None = None
    overdue: bool = False


class Crew(Protocol):
    """Those who work on cells. Nothing here blocks for longer than the seconds it is given."""

    def room(self) -> bool:
        """Whether another cell can be given to it now."""

    def take(self, planned: Planned) -> None:
        """Begin to work on a cell."""

    def hear(self, seconds: float) -> Sequence[Told | Left]:
        """What happened since the last call; waits up to so many seconds for something to happen."""

    def stop(self) -> None:
        """Ask everyone to stop as on Ctrl-C; what they leave is still heard."""

    def kill(self) -> None:
        """End all work at once."""

    def hold(self, cells: Sequence[Cell], tell: Observe, stop: Stop) -> Any:
        """Measure the inference of cells, as `bench.measure.hold` does, while the crew does nothing else.

        Raises:
            KeyboardInterrupt: if it was stopped.
            RuntimeError: if they cannot be measured.
        """
