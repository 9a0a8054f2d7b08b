"""What a person sees while a grid runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.estimate import in_words, schedule
from bench.plan import Planned
from bench.progress import News, Notice, Tick
from bench.record import Record
from bench.spec import Cell


class Display(Protocol):
    """Told of every cell that starts and ends, of every session that measures inference, and of news."""

    def start(self, planned: Planned) -> None: ...
    def tick(self, cell: Cell, news: News) -> None: ...
    def end(self, cell: Cell, record: Record) -> None: ...
    def measure(self, cells: Sequence[Cell]) -> None: ...
    def measuring(self, news: News) -> None: ...
    def tell(self, news: News) -> None: ...


def name_of(cell: Cell) -> str:
    """method · benchmark · seed."""
    return f"{cell.method.label} · {cell.benchmark.label} · seed {cell.seed}"


def session_name(cells: Sequence[Cell]) -> str:
    """measuring inference · methods · benchmark · seed."""
    methods = f"{len(cells)} methods" if len(cells) > 1 else cells[0].method.label
    return f"measuring inference · {methods} · {cells[0].benchmark.label} · seed {cells[0].seed}"


def outcome_line(record: Record, began: float | None) -> str:
    """How a cell ended, in a line; `began`: when, by the clock of `time.perf_counter`, if it was run here."""
    head = f"{record.method} · {record.benchmark} · seed {record.seed}"
    if record.metrics is None:
        return f"{record.status:>7}  {head}: {record.reason}"
    accuracy = record.metrics["accuracy"]
    shown = "not defined" if accuracy is None else f"{100 * accuracy:.1f} %"
    took = "" if began is None else f", {time.perf_counter() - began:.0f} s"
    return f"{record.status:>7}  {head}: accuracy {shown}{took}"


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


def _of(cell: Cell | None, notice: Notice) -> str:
    """A notice and whose it is."""
    return notice.text if cell is None else f"{name_of(cell)}: {notice.text}"


class Lines:
    """A line when a cell starts, when an experience starts, and when the cell ends."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.count = console, total, 0
        self.began: dict[Cell, float] = {}
        self.experience: dict[Cell | None, int] = {}

    def start(self, planned: Planned) -> None:
        self.count += 1
        self.began[planned.cell] = time.perf_counter()
        self._say(f"[{self.count}/{self.total}] {name_of(planned.cell)}")

    def tick(self, cell: Cell, news: News) -> None:
        whose = f"{name_of(cell)}: " if len(self.began) > 1 else ""
        self._news(cell, news, whose)

    def end(self, cell: Cell, record: Record) -> None:
        self._say(outcome_line(record, self.began.pop(cell, None)))

    def measure(self, cells: Sequence[Cell]) -> None:
        self.experience.pop(None, None)
        self._say(session_name(cells))

    def measuring(self, news: News) -> None:
        self._news(None, news, "")

    def tell(self, news: News) -> None:
        if isinstance(news, Notice):
            self._say(news.text)

    def _news(self, cell: Cell | None, news: News, whose: str) -> None:
        if isinstance(news, Notice):
            self._say(_of(cell, news))
        elif news.experience != self.experience.get(cell):
            self.experience[cell] = news.experience
            self._say(f"        {whose}{status_line(news)}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Live:
    """A bar for the grid (cells done, failed, running, to go, time left) and one for each running cell."""

    def __init__(
        self, progress: Progress, todo: Sequence[Planned], seconds: Mapping[Cell, float], workers: int
    ) -> None:
        self.progress, self.seconds, self.workers = progress, seconds, workers
        self.ahead = {planned.cell: planned for planned in todo}
        self.done = self.failed = 0
        self.grid = progress.add_task("grid", total=len(todo), status="")
        self.bars: dict[Cell | None, TaskID] = {}
        self.began: dict[Cell, float] = {}
        self._show_grid()

    def start(self, planned: Planned) -> None:
        self.began[planned.cell] = time.perf_counter()
        self._bar(planned.cell, name_of(planned.cell), "preparing")
        self._show_grid()

    def tick(self, cell: Cell, news: News) -> None:
        self._news(cell, news)

    def end(self, cell: Cell, record: Record) -> None:
        self.done += record.status == "done"
        self.failed += record.status != "done"
        self.ahead.pop(cell, None)
        if cell in self.bars:
            self.progress.remove_task(self.bars.pop(cell))
        self.progress.advance(self.grid)
        self._say(outcome_line(record, self.began.pop(cell, None)))
        self._show_grid()

    def measure(self, cells: Sequence[Cell]) -> None:
        if None in self.bars:
            self.progress.remove_task(self.bars.pop(None))
        self._bar(None, session_name(cells), "memory")

    def measuring(self, news: News) -> None:
        self._news(None, news)

    def tell(self, news: News) -> None:
        if isinstance(news, Notice):
            self._say(news.text)

    def _bar(self, cell: Cell | None, name: str, status: str) -> None:
        self.bars[cell] = self.progress.add_task(escape(name), total=1.0, status=status)

    def _news(self, cell: Cell | None, news: News) -> None:
        if isinstance(news, Notice):
            self._say(_of(cell, news))
        else:
            self.progress.update(self.bars[cell], completed=cell_share(news), status=status_line(news))

    def _say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def _show_grid(self) -> None:
        running = len(self.began)
        parts = [f"{self.done} done", f"{self.failed} not done", f"{running} running"]
        parts.append(f"{len(self.ahead) - running} to go")
        if self.ahead and self.ahead.keys() <= self.seconds.keys():
            left = schedule(list(self.ahead.values()), self.seconds, self.workers)
            parts.append(f"about {in_words(left)} left")
        self.progress.update(self.grid, status=" · ".join(parts))


@contextmanager
def display(
    console: Console, todo: Sequence[Planned], seconds: Mapping[Cell, float], workers: int
) -> Iterator[Display]:
    """The display that suits the console.

    Args:
        todo: the cells that are to be run.
        seconds: about what each of them takes, where that is known.
        workers: how many are run at a time.
    """
    if not console.is_terminal:
        yield Lines(console, len(todo))
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
        yield Live(progress, todo, seconds, workers)
