"""What a `run` command is going to do, as a whole; worked out before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cell.inputs import Inputs, Paths
from bench.cell.progress import Observer
from bench.grid.estimate import longest_first, seconds_by_cell
from bench.grid.executors import ExecutorClass, Parallelism
from bench.grid.plan import (
    PlannedCell,
    cells_to_run,
    changed_data,
    check_backbones,
    notes_on_data,
    notes_on_scenarios,
    notes_on_tasks,
    plan,
    resolve_device,
)
from bench.grid.scheduler import ExistingRecord, existing_records
from bench.record import read_readable
from bench.spec import Cell, Device, Settings
from methods.registry import Entry


@dataclass(frozen=True)
class GridPlan:
    """What a command is going to do.

    Attributes:
        planned: all cells of the grid.
        existing: the records on disk of the planned cells, by cell id.
        todo: the cells to be run, in their order.
        seconds: estimated duration of these, where past records allow an estimate.
        notices: sentences on the tasks and on the data.
    """

    planned: Sequence[PlannedCell]
    existing: Mapping[str, ExistingRecord]
    todo: Sequence[PlannedCell]
    seconds: Mapping[Cell, float]
    notices: Sequence[str]
    device: Device
    parallelism: Parallelism


def plan_grid(
    settings: Settings, paths: Paths, executor: Entry, skip_missing: bool, observe: Observer
) -> GridPlan:
    """Plan a grid and check that every method suits its backbone.

    Raises:
        UsageError: for anything that cannot be run (`plan`, `check_backbones`).
    """
    executor_class: ExecutorClass = executor.load()
    inputs, results = Inputs(paths), paths.results
    device = resolve_device(settings.device, executor_class.remote)
    planned = plan(settings, device, inputs, skip_missing=skip_missing)
    existing = existing_records(results, planned)
    statuses = {} if settings.rerun == "all" else {cell: entry.status for cell, entry in existing.items()}
    todo = list(cells_to_run(planned, statuses, settings.rerun))
    check_backbones(todo, inputs)
    records = read_readable(results)[0] if results.is_dir() else []
    seconds = seconds_by_cell(todo, records)
    changed = changed_data([item.cell for item in planned if item.cell.id not in existing], records)
    notices = [
        *notes_on_scenarios(planned),
        *notes_on_tasks(planned),
        *notes_on_data(planned, inputs),
        *changed,
    ]
    parallelism = executor_class.parallelism(settings, device, len(planned))
    if parallelism.workers != 1:
        todo = longest_first(todo, seconds)
    return GridPlan(planned, existing, todo, seconds, notices, device, parallelism)


def check_images(todo: Sequence[PlannedCell], paths: Paths, observe: Observer) -> None:
    """Decode the images of all cells, so that a broken image is reported before training starts.

    Raises:
        UsageError: naming every image that cannot be decoded.
    """
    inputs = Inputs(paths)
    for cell in dict.fromkeys(item.cell.without_method() for item in todo if item.missing is None):
        inputs.images(cell)
