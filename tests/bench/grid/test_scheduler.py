"""What the scheduler does with the events of an executor; the executor here follows a script."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import predictions, record
from bench.cell.checkpoint import FOLDER, Checkpoint, list_checkpoints, save
from bench.cell.inputs import Inputs, Paths
from bench.cell.manifest import RunContext, code_conditions
from bench.cell.outcome import CellResult, InferenceResult, record_without_results
from bench.cell.progress import Message, Notice, ProgressUpdate
from bench.costs import Latency, TimingConditions
from bench.grid.display import Display
from bench.grid.executors import CellFinished, CellProgress
from bench.grid.executors.worker_process import DiedError
from bench.grid.locks import TIMING, acquire_lock
from bench.grid.plan import PlannedCell
from bench.grid.scheduler import TRACEBACK_NAME, Scheduler, StoppedError, existing_records
from bench.grid.stopping import Stop
from bench.record import RECORD_NAME, Record, read
from bench.spec import Cell
from bench.storage import StorageError
from methods.registry import METHODS
from tests.bench.grid.conftest import cells
from tests.bench.in_process import run_here
from tests.bench.test_record import COST, LATENCY, content

CONTEXT = RunContext("python -m bench run", "processes", 2, 1)
TIME = "2025-01-31T12:00:00+00:00"
#: For the manifests of records that the tests write themselves.
INPUTS = Inputs(Paths((Path("not-used"),), None, Path("not-used")))

#: How a cell ends.
Outcome = Callable[[Cell], CellFinished]


class ScriptedExecutor:
    """Finishes cells at once, as `outcomes` has it for their method; others run until they are stopped.

    Attributes:
        submitted: the cells, in their order.
        calls: "stop" and "kill", as often as they were called.
        when_idle, when_submitted: called then.
        sessions: the cells of each timing session.
        measure: what a timing session returns.
    """

    def __init__(self, outcomes: dict[str, Outcome], capacity: int = 1) -> None:
        self.outcomes, self.capacity = outcomes, capacity
        self.submitted: list[Cell] = []
        self.running: list[Cell] = []
        self.events: list[CellProgress | CellFinished] = []
        self.calls: list[str] = []
        self.when_idle: Callable[[], object] = lambda: None
        self.when_submitted: Callable[[], object] = lambda: None
        self.sessions: list[tuple[Cell, ...]] = []
        self.measure: Callable[[Sequence[Cell]], dict[str, InferenceResult]] = not_measured

    def has_capacity(self) -> bool:
        return len(self.running) < self.capacity

    def submit(self, cell: Cell) -> None:
        self.submitted.append(cell)
        self.running.append(cell)
        self.events.append(CellProgress(cell, ProgressUpdate("learning", 1, 5)))
        self.when_submitted()

    def poll(self, seconds: float) -> list[CellProgress | CellFinished]:
        if not self.running:
            self.when_idle()
        events, self.events = self.events, []
        ended = [cell for cell in self.running if cell.method.label in self.outcomes]
        self.running = [cell for cell in self.running if cell not in ended]
        return [*events, *(self.outcomes[cell.method.label](cell) for cell in ended)]

    def stop(self) -> None:
        self.calls.append("stop")
        self.outcomes = {**{cell.method.label: interrupted for cell in self.running}, **self.outcomes}

    def kill(self) -> None:
        self.calls.append("kill")
        self.stop()

    def measure_inference(
        self, cells: Sequence[Cell], observe: Any, stop: Stop
    ) -> dict[str, InferenceResult]:
        self.sessions.append(tuple(cells))
        return self.measure(cells)


def not_measured(cells: Sequence[Cell]) -> dict[str, InferenceResult]:
    raise ValueError(f"{cells[0].method.label} cannot be measured")


class RecordingDisplay(Display):
    """Keeps the lines and the notices that it is to show."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.notices: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)

    def show_progress(self, cell: Cell | None, update: ProgressUpdate) -> None: ...
    def session_started(self, cells: Sequence[Cell]) -> None: ...

    def notify(self, message: Message) -> None:
        assert isinstance(message, Notice)
        self.notices.append(message.text)


def scheduler(
    inputs: Inputs, executor: ScriptedExecutor, planned: Sequence[PlannedCell], **settings: Any
) -> Scheduler:
    existing = existing_records(inputs.paths.results, planned)
    return Scheduler(
        inputs,
        CONTEXT,
        executor,
        RecordingDisplay(),
        Stop(),
        existing,
        poll_seconds=0.0,
        run_function=run_here,
        **settings,
    )


def shown(grid: Scheduler) -> RecordingDisplay:
    assert isinstance(grid.display, RecordingDisplay)
    return grid.display


def folder_of(inputs: Inputs, planned: PlannedCell) -> Path:
    return inputs.paths.results / planned.cell.id


def on_disk(inputs: Inputs, planned: PlannedCell) -> Record:
    return read(folder_of(inputs, planned) / RECORD_NAME)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def is_unlocked(inputs: Inputs, planned: PlannedCell) -> bool:
    lock = acquire_lock(inputs.paths.results, planned.cell.id)
    if lock is not None:
        lock.release()
    return lock is not None


# ---- outcomes ------------------------------------------------------------------------------------


def a_record(cell: Cell, status: record.Status, reason: str) -> Record:
    return record_without_results(cell, INPUTS, CONTEXT, TIME, status, reason)


def died(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=DiedError("its process was ended by SIGSEGV"))


def killed_for_memory(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=DiedError("its process was ended by SIGKILL", for_memory=True))


def disk_full(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=StorageError("cannot write 'x' (No space left on device)"))


def timed_out(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=DiedError("its process was ended by SIGKILL"), timed_out=True)


def interrupted(cell: Cell) -> CellFinished:
    """As on Ctrl-C."""
    return CellFinished(cell, result=CellResult(a_record(cell, "interrupted", "stopped")))


def fails(cell: Cell) -> CellFinished:
    result = CellResult(a_record(cell, "failed", "ValueError: no"), traceback="Traceback: no")
    return CellFinished(cell, result=result)


def succeeds(predicted: bytes) -> Outcome:
    """The cell finishes, with this content of its predictions file."""

    def finished(cell: Cell) -> CellFinished:
        entry = predictions.describe_file(predicted).model_dump()
        return CellFinished(cell, result=CellResult(trained(cell, predictions=entry), predicted))

    return finished


def trained(cell: Cell, **changes: Any) -> Record:
    """The record of a finished cell whose inference is not measured yet."""
    cost = COST | {"latency": None, "conditions": None}
    return Record.model_validate(content(method=cell.method.label, cost=cost) | changes)


# ---- training ------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Outcome, dict[str, Any], str, str]] = {
    "a process that dies": (died, {}, "failed", "its process was ended by SIGSEGV"),
    "one the kernel ends": (killed_for_memory, {}, "oom", "ended by SIGKILL, with a batch of 32 images"),
    "one that takes too long": (
        timed_out,
        {"cell_timeout": 60.0},
        "failed",
        "it took longer than the limit, 60 s",
    ),
    "an exception": (fails, {}, "failed", "ValueError: no"),
    "a signal from elsewhere": (interrupted, {}, "interrupted", "stopped"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_cell_affects_no_other(fault: str, inputs: Inputs) -> None:
    outcome, settings, status, reason = FAULTS[fault]
    first, second = cells(inputs, "ncm", "finetune")
    executor = ScriptedExecutor({"ncm": outcome, "finetune": fails})
    records = list(scheduler(inputs, executor, [first, second], **settings).run([first, second]))
    assert [(each.method, each.status) for each in records] == [("ncm", status), ("finetune", "failed")]
    assert reason in (on_disk(inputs, first).reason or "")
    assert on_disk(inputs, first) == records[0]
    assert (folder_of(inputs, second) / TRACEBACK_NAME).read_text() == "Traceback: no"
    assert is_unlocked(inputs, first)
    assert is_unlocked(inputs, second)


def test_a_record_names_the_checkpoint_from_which_its_cell_is_resumed(inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    save(Checkpoint({}, {}), folder_of(inputs, item), 3)
    list(scheduler(inputs, ScriptedExecutor({"ncm": died}), [item]).run([item]))
    assert (on_disk(inputs, item).reason or "").endswith("; its checkpoint after task 3 of 5 is kept")
    assert list(list_checkpoints(folder_of(inputs, item))) == [3]


def test_a_full_disk_ends_the_grid_and_the_running_cells(inputs: Inputs) -> None:
    first, second, third = planned = cells(inputs, "ncm", "finetune", "joint")
    executor = ScriptedExecutor({"ncm": disk_full}, capacity=2)
    with pytest.raises(StorageError, match="No space left"):
        list(scheduler(inputs, executor, planned).run(planned))
    assert executor.submitted == [first.cell, second.cell]
    assert executor.calls[0] == "stop"
    assert on_disk(inputs, second).status == "interrupted"
    assert not folder_of(inputs, first).exists()
    assert not folder_of(inputs, third).exists()
    assert all(is_unlocked(inputs, item) for item in planned)


def test_a_record_that_cannot_be_written_loses_no_other_one(inputs: Inputs) -> None:
    """Two cells end at once, and a file is in the place of the first one's folder."""
    first, second = planned = cells(inputs, "ncm", "finetune")
    folder_of(inputs, first).write_text("in the way")
    executor = ScriptedExecutor({"ncm": fails, "finetune": fails}, capacity=2)
    with pytest.raises(StorageError, match="File exists"):
        list(scheduler(inputs, executor, planned).run(planned))
    assert on_disk(inputs, second).reason == "ValueError: no"
    assert is_unlocked(inputs, first)
    assert is_unlocked(inputs, second)


def test_a_damaged_record_of_another_command_is_left_alone_and_stops_no_other_cell(inputs: Inputs) -> None:
    first, second = planned = cells(inputs, "ncm", "finetune")
    grid = scheduler(inputs, executor := ScriptedExecutor({"finetune": fails}), planned)
    path = folder_of(inputs, first) / RECORD_NAME
    path.parent.mkdir()
    path.write_text("{")
    (only,) = grid.run(planned)
    assert only.method == "finetune"
    assert executor.submitted == [second.cell]
    assert path.read_text() == "{"
    assert shown(grid).notices[0].startswith(f"{first.cell.id} is left alone: the record")


def test_a_grid_that_is_stopped_records_the_running_cells(inputs: Inputs) -> None:
    _, second, third = planned = cells(inputs, "ncm", "finetune", "joint")
    grid = scheduler(inputs, ScriptedExecutor({"ncm": fails}, capacity=2), planned)
    run = grid.run(planned)
    next(run)
    grid.stop.request()
    with pytest.raises(StoppedError):
        next(run)
    assert grid.finished == 1
    assert on_disk(inputs, second).status == "interrupted"
    assert on_disk(inputs, second).reason == "stopped"
    assert not folder_of(inputs, third).exists()
    assert all(is_unlocked(inputs, item) for item in planned)


def test_a_cell_that_ends_while_the_grid_stops_counts_as_finished(inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    executor = ScriptedExecutor({})
    grid = scheduler(inputs, executor, [item])
    executor.stop = lambda: executor.outcomes.update(ncm=fails)  # type: ignore[method-assign]
    executor.when_submitted = grid.stop.request
    with pytest.raises(StoppedError):
        list(grid.run([item]))
    assert grid.finished == 1
    assert on_disk(inputs, item).status == "failed"


def test_a_grid_that_is_stopped_at_once_records_nothing_more(inputs: Inputs) -> None:
    _, second = planned = cells(inputs, "ncm", "finetune")
    executor = ScriptedExecutor({"ncm": fails}, capacity=2)
    grid = scheduler(inputs, executor, planned)
    run = grid.run(planned)
    next(run)
    grid.stop = Stop(requested=True, immediate=True)
    with pytest.raises(StoppedError):
        next(run)
    assert "kill" in executor.calls
    assert not (folder_of(inputs, second) / RECORD_NAME).exists()
    assert is_unlocked(inputs, second)


def test_a_cell_that_another_command_runs_is_waited_for_and_not_run_twice(inputs: Inputs) -> None:
    first, second = planned = cells(inputs, "ncm", "finetune")
    lock = acquire_lock(inputs.paths.results, first.cell.id)
    assert lock is not None
    executor = ScriptedExecutor({"finetune": fails})
    grid = scheduler(inputs, executor, planned)

    def the_other_command_ends() -> None:
        record.write(a_record(first.cell, "failed", "it broke there"), folder_of(inputs, first))
        lock.release()

    executor.when_idle = the_other_command_ends
    records = list(grid.run(planned))
    assert executor.submitted == [second.cell]
    assert [each.reason for each in records] == ["ValueError: no", "it broke there"]
    assert shown(grid).notices[0] == "1 cell is being run by another process; waiting"
    assert shown(grid).notices[1] == f"{first.cell.id}: another command has run it"


@pytest.mark.parametrize("status", ["interrupted", None])
def test_a_cell_that_another_command_did_not_finish_is_run(status: Any, inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    lock = acquire_lock(inputs.paths.results, item.cell.id)
    assert lock is not None
    executor = ScriptedExecutor({"ncm": fails})
    grid = scheduler(inputs, executor, [item])

    def the_other_command_is_gone() -> None:
        if status:
            record.write(a_record(item.cell, status, "stopped"), folder_of(inputs, item))
        lock.release()

    executor.when_idle = the_other_command_is_gone
    (only,) = grid.run([item])
    assert executor.submitted == [item.cell]
    assert only.reason == "ValueError: no"


def test_a_record_from_before_the_command_is_not_the_work_of_another_one(inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    record.write(a_record(item.cell, "failed", "last week"), folder_of(inputs, item))
    (only,) = scheduler(inputs, ScriptedExecutor({"ncm": fails}), [item]).run([item])
    assert only.reason == "ValueError: no"


@pytest.mark.parametrize("from_scratch", [True, False])
def test_partial_files_are_deleted_and_checkpoints_only_on_request(
    from_scratch: bool, inputs: Inputs
) -> None:
    (item,) = cells(inputs, "ncm")
    folder = folder_of(inputs, item)
    save(Checkpoint({}, {}), folder, 3)
    (folder / f".{RECORD_NAME}.123").write_text("{")
    (folder / FOLDER / ".3.safetensors.123").write_text("partial")
    executor = ScriptedExecutor({"ncm": fails})
    list(scheduler(inputs, executor, [item], from_scratch=from_scratch).run([item]))
    assert list(list_checkpoints(folder)) == ([] if from_scratch else [3])
    assert files(folder) == {RECORD_NAME, TRACEBACK_NAME}
    assert not list(folder.rglob(".*"))


def test_an_unforeseen_error_of_the_executor_ends_all_cells(inputs: Inputs) -> None:
    planned = cells(inputs, "ncm", "finetune")
    executor = ScriptedExecutor({}, capacity=2)
    grid = scheduler(inputs, executor, planned)
    executor.poll = lambda seconds: 1 // 0  # type: ignore[method-assign,assign,return-value]
    with pytest.raises(ZeroDivisionError):
        list(grid.run(planned))
    assert "kill" in executor.calls
    assert all(is_unlocked(inputs, item) for item in planned)


# ---- predictions ---------------------------------------------------------------------------------


def run_with(inputs: Inputs, item: PlannedCell, outcome: Outcome) -> None:
    list(scheduler(inputs, ScriptedExecutor({item.cell.method.label: outcome}), [item]).run([item]))


def name_of(content: bytes) -> str:
    return predictions.describe_file(content).file


def test_the_predictions_lie_beside_the_record_that_names_them(inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    run_with(inputs, item, succeeds(b"first"))
    entry = on_disk(inputs, item).predictions
    assert entry is not None
    assert files(folder_of(inputs, item)) == {RECORD_NAME, entry.file}
    assert (folder_of(inputs, item) / entry.file).read_bytes() == b"first"


def test_another_result_replaces_the_predictions(inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    run_with(inputs, item, succeeds(b"first"))
    run_with(inputs, item, succeeds(b"second"))
    entry = on_disk(inputs, item).predictions
    assert entry is not None
    assert entry.file == name_of(b"second") != name_of(b"first")
    assert files(folder_of(inputs, item)) == {RECORD_NAME, entry.file}


def test_a_repetition_that_fails_leaves_no_predictions(inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    run_with(inputs, item, succeeds(b"first"))
    run_with(inputs, item, fails)
    assert on_disk(inputs, item).predictions is None
    assert files(folder_of(inputs, item)) == {RECORD_NAME, TRACEBACK_NAME}


def test_a_repetition_that_is_interrupted_leaves_record_and_predictions(inputs: Inputs) -> None:
    (item,) = cells(inputs, "ncm")
    run_with(inputs, item, succeeds(b"first"))
    before = (folder_of(inputs, item) / RECORD_NAME).read_bytes()
    save(Checkpoint({}, {}), folder_of(inputs, item), 3)
    run_with(inputs, item, interrupted)
    assert (folder_of(inputs, item) / RECORD_NAME).read_bytes() == before
    assert files(folder_of(inputs, item)) == {RECORD_NAME, name_of(b"first")}
    assert list_checkpoints(folder_of(inputs, item)) == {}


def test_a_disk_that_is_full_between_predictions_and_record_keeps_both_old_files(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = cells(inputs, "ncm")
    run_with(inputs, item, succeeds(b"first"))
    before = (folder_of(inputs, item) / RECORD_NAME).read_bytes()
    calls = []

    def full_at_the_second_file(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_at_the_second_file)
        with pytest.raises(StorageError, match="No space left on device"):
            run_with(inputs, item, succeeds(b"second"))
    assert (folder_of(inputs, item) / RECORD_NAME).read_bytes() == before
    assert (folder_of(inputs, item) / name_of(b"first")).read_bytes() == b"first"

    run_with(inputs, item, succeeds(b"third"))
    assert files(folder_of(inputs, item)) == {RECORD_NAME, name_of(b"third")}


# ---- inference -----------------------------------------------------------------------------------


def trained_cells(inputs: Inputs, **values: Any) -> list[PlannedCell]:
    """Finished cells of two methods, with the checkpoints that their inference is measured with."""
    planned = cells(inputs, "ncm", "finetune", tasks=2, **values)
    for item in planned:
        conditions = code_conditions(METHODS[item.cell.method.name].load())
        for tasks in (1, 2):
            save(Checkpoint({}, {"conditions": conditions}), folder_of(inputs, item), tasks)
        record.write(trained(item.cell), folder_of(inputs, item))
    return planned


def measured(cells: Sequence[Cell]) -> dict[str, InferenceResult]:
    latency = [Latency.model_validate(LATENCY)]
    conditions = TimingConditions.model_validate(COST["conditions"])
    return {cell.id: InferenceResult(latency, conditions, memory_batch=64) for cell in cells}


def test_what_was_measured_is_added_to_the_records_and_the_checkpoints_are_deleted(inputs: Inputs) -> None:
    planned = trained_cells(inputs)
    executor = ScriptedExecutor({})
    executor.measure = measured
    session = tuple(item.cell for item in planned)
    assert list(scheduler(inputs, executor, planned).measure(planned)) == [session]
    assert executor.sessions == [session]
    for item in planned:
        finished = on_disk(inputs, item)
        assert finished.cost is not None
        assert finished.cost.latency == [Latency.model_validate(LATENCY)]
        without = finished.cost.model_copy(update={"latency": None, "conditions": None})
        assert without.experiences == trained(item.cell).cost.experiences  # type: ignore[union-attr]
        assert list_checkpoints(folder_of(inputs, item)) == {}
        assert is_unlocked(inputs, item)


def test_only_one_command_times_inference_at_a_time(inputs: Inputs) -> None:
    lock = acquire_lock(inputs.paths.results, TIMING)
    assert lock is not None
    grid = scheduler(inputs, executor := ScriptedExecutor({}), [])
    executor.when_idle = lock.release
    assert list(grid.measure([])) == []
    assert shown(grid).notices == ["another command is timing inference; waiting for it"]


def test_a_session_that_cannot_be_run_prevents_no_other(inputs: Inputs) -> None:
    planned = trained_cells(inputs, seeds=[0, 1])
    executor = ScriptedExecutor({})
    with pytest.raises(RuntimeError, match=r"^ncm cannot be measured$"):
        list(scheduler(inputs, executor, planned).measure(planned))
    assert [[cell.seed for cell in session] for session in executor.sessions] == [[0, 0], [1, 1]]
    for item in planned:
        assert is_unlocked(inputs, item)
        assert list(list_checkpoints(folder_of(inputs, item))) == [1, 2]


def test_every_reason_why_a_session_could_not_be_run_is_reported(inputs: Inputs) -> None:
    planned = trained_cells(inputs, seeds=[0, 1])
    executor = ScriptedExecutor({})

    def fail(cells: Sequence[Cell]) -> dict[str, InferenceResult]:
        raise ValueError(f"seed {cells[0].seed} cannot be measured")

    executor.measure = fail
    with pytest.raises(RuntimeError, match="seed 0 cannot be measured; seed 1 cannot be measured"):
        list(scheduler(inputs, executor, planned).measure(planned))


def test_a_cell_that_another_command_has_locked_is_not_measured(inputs: Inputs) -> None:
    first, second = planned = trained_cells(inputs)
    lock = acquire_lock(inputs.paths.results, first.cell.id)
    assert lock is not None
    executor = ScriptedExecutor({})
    executor.measure = measured
    assert list(scheduler(inputs, executor, planned).measure(planned)) == [(second.cell,)]
    assert executor.sessions == [(second.cell,)]
    assert list(list_checkpoints(folder_of(inputs, first))) == [1, 2]
    lock.release()


def test_a_stop_while_inference_is_timed_ends_the_timing(inputs: Inputs) -> None:
    planned = trained_cells(inputs, seeds=[0, 1])
    executor = ScriptedExecutor({})

    def stopped(cells: Sequence[Cell]) -> dict[str, InferenceResult]:
        raise KeyboardInterrupt

    executor.measure = stopped
    with pytest.raises(StoppedError):
        list(scheduler(inputs, executor, planned).measure(planned))
    assert len(executor.sessions) == 1
    assert all(is_unlocked(inputs, item) for item in planned)
