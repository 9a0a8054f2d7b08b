"""The command `run`, from its settings to its exit status: what it plans, tells, does, and concludes."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.display import display
from bench.estimate import in_words, longest_first, schedule, seconds_by_cell
from bench.executors.spread import Spread, crew_of, spread_of
from bench.grid import Before, Grid, StoppedError, found_before
from bench.plan import Planned, check_images, device_of, places_of, plan, unfinished
from bench.record import RECORD_NAME, read, read_readable
from bench.spec import Cell, Settings
from bench.stopping import listening
from bench.storage import StorageError
from methods.errors import UsageError
from reports.terminal import print_table

DONE, SOME_FAILED = 0, 1


@dataclass(frozen=True)
class Work:
    """What a command found to do.

    `before`: what is on disk of the `planned` cells, by their id; `todo`: those to be run, in their order;
    `seconds`: about what each of these takes, where past records tell.
    """

    planned: Sequence[Planned]
    before: Mapping[str, Before]
    todo: Sequence[Planned]
    seconds: Mapping[Cell, float]
    spread: Spread


def carry_out(settings: Settings, options: argparse.Namespace, command: str) -> int:
    """Plan, and unless it is a dry run, run, measure and conclude; the exit status."""
    console = Console()
    work = _work(settings, options.skip_missing)
    if options.dry_run:
        return _show_plan(console, work)
    _tell_what_is_left(console, work)
    check_images(work.todo, places_of(settings))
    _make_results(settings.results)
    finished = _run_and_measure(console, settings, work, command)
    return _conclude(console, settings.results, work.planned) if finished else SOME_FAILED


def _work(settings: Settings, skip_missing: bool) -> Work:
    results = settings.results
    planned = plan(settings, skip_missing=skip_missing)
    before = found_before(results, planned)
    statuses = {} if settings.rerun == "all" else {cell: found.status for cell, found in before.items()}
    todo = list(unfinished(planned, statuses, settings.rerun))
    seconds = seconds_by_cell(todo, read_readable(results)[0] if results.is_dir() else [])
    spread = spread_of(settings, device_of(settings))
    if spread.workers != 1:
        todo = longest_first(todo, seconds)
    return Work(planned, before, todo, seconds, spread)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# ---- before ------------------------------------------------------------------------------------------


def _tell_what_is_left(console: Console, work: Work) -> None:
    left = {item.cell.id for item in work.planned} - {item.cell.id for item in work.todo}
    found = [work.before[cell] for cell in sorted(left & work.before.keys())]
    done = sum(one.status == "done" for one in found)
    others = f", {len(left) - done} left alone" if len(left) > done else ""
    _say(console, f"cells: {len(work.planned)}; {done} done before{others}, {len(work.todo)} to run")
    for complaint in (one.complaint for one in found if one.complaint):
        _say(console, complaint)
    if work.todo:
        _say(console, work.spread.in_words())


def _make_results(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the results folder '{folder}' ({error.strerror}); give another --results"
        ) from None


def _show_plan(console: Console, work: Work) -> int:
    """What would be run, in which order, where, and about how long it would take."""
    turns = {item.cell.id: turn for turn, item in enumerate(work.todo, start=1)}
    table = Table("cell", "what would happen", "about")
    for item in work.planned:
        cell, known = item.cell.id, work.seconds.get(item.cell)
        fate = _fate(item, turns.get(cell), work.before.get(cell))
        table.add_row(cell, fate, "" if known is None else in_words(known))
    console.print(table)
    for complaint in (found.complaint for found in work.before.values() if found.complaint):
        _say(console, complaint)
    if work.todo:
        _say(console, work.spread.in_words())
        _say(console, _forecast(work))
    _say(console, f"cells: {len(work.planned)}; {len(work.todo)} to run; nothing was run or written")
    return DONE


def _fate(item: Planned, turn: int | None, found: Before | None) -> str:
    if turn is not None:
        return f"record as skipped: {item.missing}" if item.missing else f"run, in turn {turn}"
    if found is None:
        return "nothing: it has no record"
    return "nothing: its record is " + ("reused" if found.complaint is None else "damaged, and left alone")


def _forecast(work: Work) -> str:
    """About how long training and evaluation would take."""
    known = [item for item in work.todo if item.cell in work.seconds]
    if not known:
        return "time: no past record in this results folder tells how long these cells take"
    workers = work.spread.workers
    whole = in_words(schedule(known, work.seconds, workers or 1))
    unknown = len(work.todo) - len(known)
    but = f", without {unknown} cells of which nothing is known" if unknown else ""
    share = "" if workers else ", divided by what the cluster runs at a time"
    return f"time, from past records: about {whole}{but}{share}; inference is timed after that"


# ---- the work ----------------------------------------------------------------------------------------


def _run_and_measure(console: Console, settings: Settings, work: Work, command: str) -> bool:
    """Run the cells, then measure; False if it ended early, which was said."""
    places, limit = places_of(settings), settings.cell_timeout
    with crew_of(work.spread, places, command, limit) as (crew, how), listening() as stop:
        workers = work.spread.workers or max(1, len(work.todo))
        with display(console, work.todo, work.seconds, workers) as shown:
            anew = settings.rerun == "all"
            grid = Grid(places, how, crew, shown, stop, work.before, limit, anew)
            _run(grid, work.todo)
        if stop.asked:
            _say(
                console,
                f"stopped: {grid.ended} of {len(work.todo)} cells ended and are on disk in "
                f"'{places.results}'; "
                "the same command runs the rest, and those that were under way from their last experience",
            )
            return False
        return _measure(console, grid, work.planned)


def _run(grid: Grid, todo: Sequence[Planned]) -> None:
    """Run the cells, until they have ended or the grid was stopped."""
    with suppress(StoppedError):
        for _ in grid.run(todo):
            pass


def _measure(console: Console, grid: Grid, planned: Sequence[Planned]) -> bool:
    """Time the inference of the cells that wait for it; False if that could not be finished."""
    try:
        with display(console, [], {}, 1) as grid.shown:
            for _ in grid.measure(planned):
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


def _conclude(console: Console, results: Path, planned: Sequence[Planned]) -> int:
    found = found_before(results, planned)
    complaints = [one.complaint for one in found.values() if one.complaint]
    records = [read(results / cell / RECORD_NAME) for cell, one in found.items() if not one.complaint]
    print_table(records, console)
    _say(console, f"records: {results}; report: python -m bench report --results {shlex.quote(str(results))}")
    failed = sum(not record.done for record in records)
    if failed:
        _say(console, f"{failed} of {len(planned)} cells are not done; reasons are in the table's notes")
    for complaint in complaints:
        _say(console, f"not in the table: {complaint}")
    if absent := len(planned) - len(found):
        _say(
            console, f"{absent} of {len(planned)} cells have no record; the command without --rerun runs them"
        )
    return SOME_FAILED if failed or complaints or absent else DONE
