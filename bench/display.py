"""What a person sees while a grid runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.plan import Planned
from bench.progress import Tick
from bench.record import Record
from bench.spec import Cell


class Display(Protocol):
    """Told of every cell that starts and ends, of every session that measures inference, and of ticks."""

    def start(self, planned: Planned) -> None: ...
    def tick(self, tick: Tick) -> None: ...
    def end(self, record: Record) -> None: ...
    def measure(self, cells: Sequence[Cell]) -> None: ...


def name_of(planned: Planned) -> str:
    """method · benchmark · seed."""
    cell = planned.cell
    return f"{cell.method.label} · {cell.benchmark.label} · seed {cell.seed}"


def session_name(cells: Sequence[Cell]) -> str:
    """measuring inference · methods · benchmark · seed."""
    methods = f"{len(cells)} methods" if len(cells) > 1 else cells[0].method.label
    return f"measuring inference · {methods} · {cells[0].benchmark.label} · seed {cells[0].seed}"


def outcome_line(record: Record, seconds: float) -> str:
    """How a cell ended, in a line."""
    head = f"{record.method} · {record.benchmark} · seed {record.seed}"
    if record.metrics is None:
        return f"{record.status:>7}  {head}: {record.reason}"
    accuracy = record.metrics["accuracy"]
    shown = "not defined" if accuracy is None else f"{100 * accuracy:.1f} %"
    return f"{record.status:>7}  {head}: accuracy {shown}, {seconds:.0f} s"


def cell_share(tick: Tick) -> float:
    """Share of a cell that is behind it, counting experiences as equally long."""
    within = 1.0 if tick.activity == "evaluating" else tick.share
    return (tick.experience - 1 + within) / tick.experiences


def status_line(tick: Tick) -> str:
    """Where within the cell."""
    parts = [f"{tick.steps} {tick.experience}/{tick.experiences}", tick.activity]
    if tick.epoch:
        parts.append(f"epoch {tick.epoch}/{tick.epochs}")
    if tick.loss is not None:
        parts.append(f"loss {tick.loss:.3f}")
    if tick.images_per_second is not None:
        parts.append(f"{tick.images_per_second:.0f} images/s")
    return " · ".join(parts)


class Lines:
    """A line when a cell starts, when an experience starts, and when the cell ends."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.count = console, total, 0

    def start(self, planned: Planned) -> None:
        self.count, self.began, self.experience = self.count + 1, time.perf_counter(), 0
        self._say(f"[{self.count}/{self.total}] {name_of(planned)}")

    def tick(self, tick: Tick) -> None:
        if tick.experience != self.experience:
            self.experience = tick.experience
            self._say(f"        {status_line(tick)}")

    def end(self, record: Record) -> None:
        self._say(outcome_line(record, time.perf_counter() - self.began))

    def measure(self, cells: Sequence[Cell]) -> None:
        self.experience = 0
        self._say(session_name(cells))

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Live:
    """Two bars: the grid (cells done, failed, to go) and the running cell (time left, speed, loss)."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.failed = progress, total, 0
        self.grid = progress.add_task("grid", total=total, status="")
        self.cell = progress.add_task("", total=1.0, status="")

    def start(self, planned: Planned) -> None:
        self.began = time.perf_counter()
        self.progress.reset(self.cell, total=1.0, description=escape(name_of(planned)), status="preparing")
        self._show_grid()

    def tick(self, tick: Tick) -> None:
        self.progress.update(self.cell, completed=cell_share(tick), status=status_line(tick))

    def end(self, record: Record) -> None:
        self.failed += record.status != "done"
        self.progress.advance(self.grid)
        self._show_grid()
        self.progress.console.print(
            outcome_line(record, time.perf_counter() - self.began), markup=False, highlight=False
        )

    def measure(self, cells: Sequence[Cell]) -> None:
        self.progress.reset(self.cell, total=1.0, description=escape(session_name(cells)), status="memory")

    def _show_grid(self) -> None:
        finished = int(self.progress.tasks[0].completed)
        done, to_go = finished - self.failed, self.total - finished
        self.progress.update(self.grid, status=f"{done} done · {self.failed} not done · {to_go} to go")


@contextmanager
def display(console: Console, total: int) -> Iterator[Display]:
    """The display that suits the console, for a grid of `total` cells."""
    if not console.is_terminal:
        yield Lines(console, total)
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
        yield Live(progress, total)
