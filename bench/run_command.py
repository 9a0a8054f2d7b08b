"""The command `run`: plan a grid, run its cells, measure their inference, print a summary."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from bench.cell.inputs import Inputs, Paths, paths_from
from bench.cell.manifest import RunContext
from bench.grid.display import display
from bench.grid.estimate import in_words, schedule
from bench.grid.executors import ExecutorClass
from bench.grid.executors.worker_process import Resources, RunFunction
from bench.grid.grid_plan import GridPlan, check_images, plan_grid
from bench.grid.plan import PlannedCell
from bench.grid.scheduler import ExistingRecord, Scheduler, StoppedError, existing_records
from bench.grid.stopping import stop_on_signals
from bench.record import RECORD_NAME, read
from bench.spec import Protocol, Settings
from bench.storage import StorageError
from methods.errors import UsageError
from methods.registry import Entry
from reports.terminal import print_table

DONE, SOME_FAILED = 0, 1


def run_grid(
    settings: Settings,
    options: argparse.Namespace,
    command: str,
    executors: Mapping[str, Entry],
    run: RunFunction,
) -> int:
    """Plan a grid and, unless it is a dry run, run and measure it; returns the exit status.

    Args:
        command: what the user typed, for the records.
        executors: by name.
        run: runs a function in a process that has imported torch, as `run_in_process` does.
    """
    console, paths = Console(), paths_from(settings)
    entry = executors[settings.executor]
    executor: ExecutorClass = entry.load()
    executor.check(settings)
    grid: GridPlan = _prepare(run, console, plan_grid, settings, paths, entry, options.skip_missing)
    if options.dry_run:
        return _show_plan(console, grid)
    _announce(console, grid)
    _prepare(run, console, check_images, grid.todo, paths)
    _make_results(settings.results)
    completed = _run_and_measure(console, settings, executor, paths, grid, command, run)
    return _summarise(console, settings.results, grid.planned) if completed else SOME_FAILED


def _prepare(run: RunFunction, console: Console, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that is to run before any cell does.

    Raises:
        KeyboardInterrupt: if a stop was requested, once the function has ended.
    """
    with stop_on_signals() as stop:
        return run(
            function,
            *arguments,
            resources=Resources("cpu"),
            observe=lambda message: _say(console, message.text),
            stop=stop,
        )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# ---- before ------------------------------------------------------------------------------------------


def _announce(console: Console, grid: GridPlan) -> None:
    """Print the number of cells, how many are done already, and what runs where."""
    not_run = {item.cell.id for item in grid.planned} - {item.cell.id for item in grid.todo}
    existing = [grid.existing[cell] for cell in sorted(not_run & grid.existing.keys())]
    done = sum(entry.status == "done" for entry in existing)
    others = f", {len(not_run) - done} left alone" if len(not_run) > done else ""
    _say(console, f"cells: {len(grid.planned)}; {done} done before{others}, {len(grid.todo)} to run")
    for sentence in (*grid.notices, *(entry.complaint for entry in existing if entry.complaint)):
        _say(console, sentence)
    _caution(console, grid)
    if grid.todo:
        _say(console, grid.parallelism.description)


def _caution(console: Console, grid: GridPlan) -> None:
    """Print what a user should know before the training starts: each sentence once, with its methods."""
    rows: dict[tuple[str, str], list[str]] = {}
    for item in grid.todo:
        if item.caution:
            rows.setdefault((item.cell.benchmark.label, item.caution), []).append(item.cell.method.label)
    for (benchmark, sentence), methods in rows.items():
        _say(console, f"note: {', '.join(dict.fromkeys(methods))} on {benchmark}: {sentence}")


def _make_results(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot create the results folder '{folder}' ({error.strerror}); give another --results"
        ) from None


def _show_plan(console: Console, grid: GridPlan) -> int:
    """Print what would be run, in which order, where, and about how long it would take."""
    turns = {item.cell.id: turn for turn, item in enumerate(grid.todo, start=1)}
    table = Table(Column("cell", overflow="fold"), "training", "what would happen", "about")
    for item in grid.planned:
        cell, seconds = item.cell.id, grid.seconds.get(item.cell)
        action = _action(item, turns.get(cell), grid.existing.get(cell))
        training = _training(item.cell.protocol)
        name = f"{cell} ({item.cell.benchmark.label})" if item.cell.places else cell
        table.add_row(name, training, action, "" if seconds is None else in_words(seconds))
    console.print(table)
    for sentence in (*grid.notices, *(e.complaint for e in grid.existing.values() if e.complaint)):
        _say(console, sentence)
    _caution(console, grid)
    if grid.todo:
        _say(console, grid.parallelism.description)
        _say(console, _forecast(grid))
    _say(console, f"cells: {len(grid.planned)}; {len(grid.todo)} to run; nothing was run or written")
    return DONE


def _training(protocol: Protocol) -> str:
    """How often each image is trained on, how many at a time, and in which class order: recipes differ."""
    epochs = "1 epoch" if protocol.epochs == 1 else f"{protocol.epochs} epochs"
    dropped = " (the last, smaller one dropped)" if protocol.drop_last else ""
    order = "" if protocol.class_order == "seeded" else f", class order {protocol.class_order}"
    return f"{epochs}, batches of {protocol.batch_size}{dropped}{order}"


def _action(item: PlannedCell, turn: int | None, existing: ExistingRecord | None) -> str:
    if turn is not None:
        return f"record as skipped: {item.missing}" if item.missing else f"run, in turn {turn}"
    if existing is None:
        return "nothing: it has no record"
    return "nothing: its record is " + ("reused" if existing.complaint is None else "damaged, and left alone")


def _forecast(grid: GridPlan) -> str:
    """About how long training and evaluation would take."""
    estimated = [item for item in grid.todo if item.cell in grid.seconds]
    if not estimated:
        return "time: no estimate, because the results folder has no record of a similar cell"
    workers = grid.parallelism.workers
    total = in_words(schedule(estimated, grid.seconds, workers or 1))
    others = len(grid.todo) - len(estimated)
    exception = f", without {others} cells to which no past record is similar" if others else ""
    divided = "" if workers else ", divided by the number of cells that the cluster runs at a time"
    return f"time, from past records: about {total}{exception}{divided}; inference is timed after that"


# ---- the work ----------------------------------------------------------------------------------------


def _run_and_measure(
    console: Console,
    settings: Settings,
    executor_class: ExecutorClass,
    paths: Paths,
    grid: GridPlan,
    command: str,
    run: RunFunction,
) -> bool:
    """Run the cells, then time their inference; returns False if that ended early, which is printed."""
    workers = grid.parallelism.workers
    context = RunContext(command, settings.executor, workers, grid.parallelism.threads)
    with (
        executor_class.open(settings, grid.device, paths, context) as executor,
        stop_on_signals() as stop,
    ):
        with display(console, grid.todo, grid.seconds, workers or max(1, len(grid.todo))) as cell_display:
            scheduler = Scheduler(
                Inputs(paths),
                context,
                executor,
                cell_display,
                stop,
                grid.existing,
                settings.cell_timeout,
                from_scratch=settings.rerun == "all",
                run_function=run,
            )
            _run(scheduler, grid.todo)
        if stop.requested:
            _say(
                console,
                f"stopped: {scheduler.finished} of {len(grid.todo)} cells ended and are on disk in "
                f"'{settings.results}'; the same command runs the rest, and resumes interrupted cells "
                "after their last completed task",
            )
            return False
        return _measure(console, scheduler, grid.planned)


def _run(scheduler: Scheduler, todo: Sequence[PlannedCell]) -> None:
    """Run the cells until all have ended or the grid is stopped."""
    with suppress(StoppedError):
        for _ in scheduler.run(todo):
            pass


def _measure(console: Console, scheduler: Scheduler, planned: Sequence[PlannedCell]) -> bool:
    """Time the inference of the cells that need it; returns False if that could not be completed."""
    try:
        with display(console, [], {}, 1) as scheduler.display:
            for _ in scheduler.measure(planned):
                pass
    except StoppedError:
        _say(console, "stopped: all accuracies are on disk; the same command goes on measuring inference")
        return False
    except StorageError:
        raise
    except RuntimeError as error:  # a device out of memory, a process that was killed
        _say(
            console,
            f"inference could not be measured: {error}; all accuracies are on disk, "
            "and the same command tries again",
        )
        return False
    return True


# ---- after -------------------------------------------------------------------------------------------


def _summarise(console: Console, results: Path, planned: Sequence[PlannedCell]) -> int:
    existing = existing_records(results, planned)
    complaints = [entry.complaint for entry in existing.values() if entry.complaint]
    records = [read(results / cell / RECORD_NAME) for cell, entry in existing.items() if not entry.complaint]
    print_table(records, console)
    _say(console, f"records: {results}; report: python -m bench report --results {shlex.quote(str(results))}")
    failed = sum(not record.done for record in records)
    if failed:
        _say(console, f"{failed} of {len(planned)} cells are not done; reasons are in the table's notes")
    for complaint in complaints:
        _say(console, f"not in the table: {complaint}")
    if absent := len(planned) - len(existing):
        _say(
            console, f"{absent} of {len(planned)} cells have no record; the command without --rerun runs them"
        )
    return SOME_FAILED if failed or complaints or absent else DONE
