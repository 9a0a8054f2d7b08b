"""Display of a running grid: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.cell.progress import Message, Notice, ProgressUpdate
from bench.grid.estimate import in_words, schedule
from bench.grid.plan import PlannedCell
from bench.record import Record
from bench.spec import Cell


def name_of(cell: Cell) -> str:
    """method · benchmark · seed."""
    return f"{cell.method.label} · {cell.benchmark.label} · seed {cell.seed}"


def session_name(cells: Sequence[Cell]) -> str:
    """measuring inference · methods · benchmark · seed."""
    methods = f"{len(cells)} methods" if len(cells) > 1 else cells[0].method.label
    return f"measuring inference · {methods} · {cells[0].benchmark.label} · seed {cells[0].seed}"


def outcome_line(record: Record, started: float | None) -> str:
    """The status of a cell that has ended, with its accuracy or the reason, in a line.

    Args:
        started: when it started, by `time.perf_counter`; None if this command did not run it.
    """
    head = f"{record.method} · {record.benchmark} · seed {record.seed}"
    metrics = record.metrics
    if metrics is None:
        return f"{record.status:>7}  {head}: {record.reason}"
    accuracy = metrics["accuracy"]
    percent = "not defined" if accuracy is None else f"{100 * accuracy:.1f} %"
    seconds = "" if started is None else f", {time.perf_counter() - started:.0f} s"
    return f"{record.status:>7}  {head}: accuracy {percent}{seconds}"


def cell_fraction(update: ProgressUpdate) -> float:
    """The finished part of a cell, 0 to 1, as if all tasks took equally long."""
    within = 1.0 if update.activity == "evaluating" else update.share
    return (update.experience - 1 + within) / update.experiences


def status_line(update: ProgressUpdate) -> str:
    """The progress of a cell, in a line."""
    parts = [f"{update.steps} {update.experience}/{update.experiences}", update.activity]
    if update.epoch:
        parts.append(f"epoch {update.epoch}/{update.epochs}")
    if update.loss is not None:
        parts.append(f"loss {update.loss:.3f}")
    if update.images_per_second is not None:
        parts.append(f"{update.images_per_second:.0f} images/s")
    return " · ".join(parts)


class Display(ABC):
    """Shows the cells of a grid, its timing sessions, and notices.

    A subclass implements `print`, `show_progress` and `session_started`.
    """

    def __init__(self) -> None:
        self.started: dict[Cell, float] = {}

    @abstractmethod
    def print(self, text: str) -> None:
        """Print a line of plain text."""

    @abstractmethod
    def show_progress(self, cell: Cell | None, update: ProgressUpdate) -> None:
        """Show the progress of a cell, or of the timing session if `cell` is None."""

    def cell_started(self, planned: PlannedCell) -> None:
        """A cell was submitted."""
        self.started[planned.cell] = time.perf_counter()

    def cell_progress(self, cell: Cell, message: Message) -> None:
        """A cell sent a message."""
        if isinstance(message, Notice):
            self.print(f"{name_of(cell)}: {message.text}")
        else:
            self.show_progress(cell, message)

    def cell_finished(self, cell: Cell, record: Record) -> None:
        """The record of a cell is on disk."""
        self.print(outcome_line(record, self.started.pop(cell, None)))

    @abstractmethod
    def session_started(self, cells: Sequence[Cell]) -> None:
        """A timing session of these cells has started."""

    def session_progress(self, message: Message) -> None:
        """The timing session sent a message."""
        if isinstance(message, Notice):
            self.print(message.text)
        else:
            self.show_progress(None, message)

    def notify(self, message: Message) -> None:
        """Print a notice about the grid."""
        if isinstance(message, Notice):
            self.print(message.text)


class LineDisplay(Display):
    """Prints a line when a cell starts, when a task starts, and when the cell ends."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__()
        self.console, self.total, self.count = console, total, 0
        self.experience: dict[Cell | None, int] = {}

    def print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def cell_started(self, planned: PlannedCell) -> None:
        super().cell_started(planned)
        self.count += 1
        self.print(f"[{self.count}/{self.total}] {name_of(planned.cell)}")

    def session_started(self, cells: Sequence[Cell]) -> None:
        self.experience.pop(None, None)
        self.print(session_name(cells))

    def show_progress(self, cell: Cell | None, update: ProgressUpdate) -> None:
        if update.experience == self.experience.get(cell):
            return
        self.experience[cell] = update.experience
        name = f"{name_of(cell)}: " if cell is not None and len(self.started) > 1 else ""
        self.print(f"        {name}{status_line(update)}")


class LiveDisplay(Display):
    """Shows a bar for the grid (cells done, not done, running, to go; time left) and one per running cell."""

    def __init__(
        self, progress: Progress, todo: Sequence[PlannedCell], seconds: Mapping[Cell, float], workers: int
    ) -> None:
        super().__init__()
        self.progress, self.seconds, self.workers = progress, seconds, workers
        self.unfinished = {planned.cell: planned for planned in todo}
        self.done = self.failed = 0
        self.grid = progress.add_task("grid", total=len(todo), status="")
        self.bars: dict[Cell | None, TaskID] = {}
        self._update_grid()

    def print(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def cell_started(self, planned: PlannedCell) -> None:
        super().cell_started(planned)
        self._add_bar(planned.cell, name_of(planned.cell), "preparing")
        self._update_grid()

    def cell_finished(self, cell: Cell, record: Record) -> None:
        self.done += record.status == "done"
        self.failed += record.status != "done"
        self.unfinished.pop(cell, None)
        if cell in self.bars:
            self.progress.remove_task(self.bars.pop(cell))
        self.progress.advance(self.grid)
        super().cell_finished(cell, record)
        self._update_grid()

    def session_started(self, cells: Sequence[Cell]) -> None:
        if None in self.bars:
            self.progress.remove_task(self.bars.pop(None))
        self._add_bar(None, session_name(cells), "memory")

    def show_progress(self, cell: Cell | None, update: ProgressUpdate) -> None:
        self.progress.update(self.bars[cell], completed=cell_fraction(update), status=status_line(update))

    def _add_bar(self, cell: Cell | None, name: str, status: str) -> None:
        self.bars[cell] = self.progress.add_task(escape(name), total=1.0, status=status)

    def _update_grid(self) -> None:
        running = len(self.started)
        parts = [f"{self.done} done", f"{self.failed} not done", f"{running} running"]
        parts.append(f"{len(self.unfinished) - running} to go")
        if self.unfinished and self.unfinished.keys() <= self.seconds.keys():
            left = schedule(list(self.unfinished.values()), self.seconds, self.workers)
            parts.append(f"about {in_words(left)} left")
        self.progress.update(self.grid, status=" · ".join(parts))


@contextmanager
def display(
    console: Console, todo: Sequence[PlannedCell], seconds: Mapping[Cell, float], workers: int
) -> Iterator[Display]:
    """The display that suits the console.

    Args:
        todo: the cells that are to be run.
        seconds: their estimated durations, where there are any.
        workers: cells at a time.
    """
    if not console.is_terminal:
        yield LineDisplay(console, len(todo))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield LiveDisplay(progress, todo, seconds, workers)
