"""What a grid does with what its crew tells; the crew here only plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import record
from bench.cell.backbone import MICRO_NAME
from bench.cell.checkpoint import State, kept, save
from bench.cell.manifest import RunContext
from bench.cell.progress import Message, Notice, ProgressUpdate
from bench.cell.runner import CellResult, record_of
from bench.grid import scheduler as grids
from bench.grid.executors import CellFinished, CellProgress
from bench.grid.executors.worker_process import DiedError
from bench.grid.locks import claim
from bench.grid.plan import Paths, PlannedCell, plan
from bench.grid.scheduler import Scheduler, StoppedError, existing_records
from bench.grid.stopping import Stop
from bench.record import RECORD_NAME, Record, read
from bench.spec import Cell, settings_from
from bench.storage import StorageError

HOW = RunContext("python -m bench run", "processes", 2, 1)

#: What becomes of a cell: the crew's last word on it.
Fate = Callable[[Cell], CellFinished]


class Players:
    """A crew of one that takes a cell and has the word on it ready at once."""

    def __init__(self, fates: dict[str, Fate], has_capacity: int = 1) -> None:
        self.fates, self.most = fates, has_capacity
        self.taken: list[Cell] = []
        self.said: list[CellProgress | CellFinished] = []
        self.at_work: list[Cell] = []
        self.requested: list[str] = []
        self.when_idle: Callable[[], None] = lambda: None

    def has_capacity(self) -> bool:
        return len(self.at_work) < self.most

    def submit(self, planned: PlannedCell) -> None:
        self.taken.append(planned.cell)
        self.at_work.append(planned.cell)
        self.said.append(CellProgress(planned.cell, ProgressUpdate("learning", 1, 5)))

    def poll(self, seconds: float) -> list[CellProgress | CellFinished]:
        if not self.at_work:
            self.when_idle()
        said, self.said = self.said, []
        ready = [cell for cell in self.at_work if cell.method.label in self.fates]
        self.at_work = [cell for cell in self.at_work if cell not in ready]
        return [*said, *(self.fates[cell.method.label](cell) for cell in ready)]

    def stop(self) -> None:
        self.requested.append("stop")
        self.fates = {cell.method.label: self.fates.get(cell.method.label, ends) for cell in self.at_work}

    def kill(self) -> None:
        self.requested.append("kill")
        self.stop()

    def measure_inference(self, cells: Sequence[Cell], notify: Any, stop: Any) -> Any:
        raise AssertionError("not part of these tests")


class Shown:
    """A display that remembers."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.ended: list[str] = []

    def start(self, planned: PlannedCell) -> None: ...
    def tick(self, cell: Cell, news: Message) -> None: ...
    def measure(self, cells: Sequence[Cell]) -> None: ...
    def measuring(self, news: Message) -> None: ...

    def end(self, cell: Cell, record: Record) -> None:
        self.ended.append(f"{cell.method.label} {record.status}")

    def notify(self, news: Message) -> None:
        assert isinstance(news, Notice)
        self.notices.append(news.text)


def died(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=DiedError("its process was ended by SIGSEGV"))


def starved(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=DiedError("its process was ended by SIGKILL", for_memory=True))


def full(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=StorageError("cannot write 'x' (No space left on device)"))


def late(cell: Cell) -> CellFinished:
    return CellFinished(cell, error=DiedError("its process was ended by SIGKILL"), timed_out=True)


def ends(cell: Cell) -> CellFinished:
    """As on Ctrl-C."""
    return CellFinished(cell, ended=CellResult(a_record(cell, "interrupted", "stopped")))


def fails(cell: Cell) -> CellFinished:
    return CellFinished(cell, ended=CellResult(a_record(cell, "failed", "ValueError: no"), "Traceback: no"))


def a_record(cell: Cell, status: record.Status, reason: str) -> Record:
    return record_of(cell, PLACES[0], HOW, "2025-01-31T12:00:00+00:00", status, reason)


PLACES: list[Paths] = []


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    PLACES[:] = [Paths((), None, results)]
    monkeypatch.setattr(grids, "POLL", 0.0)


def cells(*methods: str) -> list[PlannedCell]:
    given = {"methods": methods, "benchmarks": ["digits"], "seeds": [0], "backbone": MICRO_NAME}
    return plan(settings_from(given), skip_missing=False)


def grid_of(executor: Players, planned: Sequence[PlannedCell], **settings: Any) -> Scheduler:
    before = existing_records(PLACES[0].results, planned)
    return Scheduler(PLACES[0], HOW, executor, Shown(), Stop(), before, **settings)


def on_disk(planned: PlannedCell) -> Record:
    return read(PLACES[0].results / planned.cell.id / RECORD_NAME)


def free(planned: PlannedCell) -> bool:
    """Whether nobody claims the cell any more."""
    lock = claim(PLACES[0].results, planned.cell.id)
    if lock is not None:
        lock.release()
    return lock is not None


FAULTS: dict[str, tuple[Fate, dict[str, Any], str, str]] = {
    "a process that dies": (died, {}, "failed", "its process was ended by SIGSEGV"),
    "one the kernel ends": (starved, {}, "oom", "ended by SIGKILL, with a batch of 32 images"),
    "one that takes too long": (late, {"limit": 60.0}, "failed", "it took longer than the limit, 60 s"),
    "an exception": (fails, {}, "failed", "ValueError: no"),
    "a signal from elsewhere": (ends, {}, "interrupted", "stopped"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_cells_fault_is_one_cells_fault(fault: str) -> None:
    fate, settings, status, reason = FAULTS[fault]
    first, second = cells("ncm", "finetune")
    executor = Players({"ncm": fate, "finetune": fails})
    made = list(grid_of(executor, [first, second], **settings).run([first, second]))
    assert [(one.method, one.status) for one in made] == [("ncm", status), ("finetune", "failed")]
    assert reason in (on_disk(first).reason or "")
    assert on_disk(first) == made[0]
    assert (PLACES[0].results / second.cell.id / grids.TRACEBACK_NAME).read_text() == "Traceback: no"
    assert free(first)
    assert free(second)


def test_a_record_says_where_the_cell_goes_on() -> None:
    (item,) = cells("ncm")
    save(State({}, {}), PLACES[0].results / item.cell.id, 3)
    list(grid_of(Players({"ncm": died}), [item]).run([item]))
    assert (on_disk(item).reason or "").endswith("; its state after experience 3 of 5 is kept")
    assert list(kept(PLACES[0].results / item.cell.id)) == [3]


def test_a_full_disk_ends_the_grid_and_the_work_under_way() -> None:
    first, second, third = cells("ncm", "finetune", "joint")
    executor = Players({"ncm": full}, has_capacity=2)
    grid = grid_of(executor, [first, second, third])
    with pytest.raises(StorageError, match="No space left"):
        list(grid.run([first, second, third]))
    assert executor.taken == [first.cell, second.cell]
    assert executor.requested[0] == "stop"
    assert on_disk(second).status == "interrupted"
    assert not (PLACES[0].results / first.cell.id).exists()
    assert all(map(free, (first, second, third)))


def test_a_disk_that_is_full_for_a_record_loses_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells leave at once, and the first of their records cannot be written."""
    first, second = cells("ncm", "finetune")
    write = record.write

    def full_once(made: Record, folder: Path) -> Path:
        if made.method == "ncm":
            raise StorageError("cannot write 'x' (No space left on device)")
        return write(made, folder)

    monkeypatch.setattr(record, "write", full_once)
    grid = grid_of(Players({"ncm": fails, "finetune": fails}, has_capacity=2), [first, second])
    with pytest.raises(StorageError, match="No space left"):
        list(grid.run([first, second]))
    assert on_disk(second).reason == "ValueError: no"
    assert free(first)
    assert free(second)


def test_a_record_that_another_command_left_damaged_stops_nobody() -> None:
    first, second = cells("ncm", "finetune")
    grid = grid_of(executor := Players({"finetune": fails}), [first, second])
    path = PLACES[0].results / first.cell.id / RECORD_NAME
    path.parent.mkdir()
    path.write_text("{")
    (made,) = grid.run([first, second])
    assert made.method == "finetune"
    assert executor.taken == [second.cell]
    assert path.read_text() == "{"
    assert isinstance(grid.shown, Shown)
    assert grid.shown.notices[0].startswith(f"{first.cell.id} is left alone: the record")


def test_a_grid_that_is_stopped_records_what_was_under_way() -> None:
    first, second, third = cells("ncm", "finetune", "joint")
    executor = Players({"ncm": fails}, has_capacity=2)
    grid = grid_of(executor, [first, second, third])
    run = grid.run([first, second, third])
    next(run)
    grid.stop.request()
    with pytest.raises(StoppedError):
        next(run)
    assert grid.ended == 1
    assert on_disk(second).status == "interrupted"
    assert not (PLACES[0].results / third.cell.id).exists()
    assert all(map(free, (first, second, third)))


def test_a_cell_that_ends_while_the_grid_stops_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = cells("ncm")
    executor = Players({})
    grid = grid_of(executor, [item])
    monkeypatch.setattr(executor, "stop", lambda: executor.fates.update(ncm=fails))
    monkeypatch.setattr(executor, "take", lambda planned: (Players.submit(executor, planned), grid.stop.request()))
    with pytest.raises(StoppedError):
        list(grid.run([item]))
    assert grid.ended == 1
    assert on_disk(item).status == "failed"


def test_a_grid_that_is_stopped_at_once_records_nothing_more() -> None:
    first, second = cells("ncm", "finetune")
    executor = Players({"ncm": fails}, has_capacity=2)
    grid = grid_of(executor, [first, second])
    run = grid.run([first, second])
    next(run)
    grid.stop = Stop(requested=True, immediate=True)
    with pytest.raises(StoppedError):
        next(run)
    assert "kill" in executor.requested
    assert not (PLACES[0].results / second.cell.id / RECORD_NAME).exists()
    assert free(second)


def test_a_cell_of_another_command_is_waited_for_and_not_run_twice() -> None:
    first, second = cells("ncm", "finetune")
    lock = claim(PLACES[0].results, first.cell.id)
    assert lock is not None
    executor = Players({"finetune": fails})
    grid = grid_of(executor, [first, second])

    def the_other_one_ends() -> None:
        record.write(a_record(first.cell, "failed", "it broke there"), PLACES[0].results / first.cell.id)
        lock.release()

    executor.when_idle = the_other_one_ends
    made = list(grid.run([first, second]))
    assert executor.taken == [second.cell]
    assert [one.reason for one in made] == ["ValueError: no", "it broke there"]
    assert isinstance(grid.shown, Shown)
    assert grid.shown.notices[0] == "1 cell is another command's; waiting for it"
    assert grid.shown.notices[1] == f"{first.cell.id}: another command has run it"


@pytest.mark.parametrize("left", ["interrupted", None])
def test_a_cell_that_another_command_left_is_taken_over(left: Any) -> None:
    (item,) = cells("ncm")
    lock = claim(PLACES[0].results, item.cell.id)
    assert lock is not None
    executor = Players({"ncm": fails})
    grid = grid_of(executor, [item])

    def the_other_one_is_gone() -> None:
        if left:
            record.write(a_record(item.cell, left, "stopped"), PLACES[0].results / item.cell.id)
        lock.release()

    executor.when_idle = the_other_one_is_gone
    (made,) = grid.run([item])
    assert executor.taken == [item.cell]
    assert made.reason == "ValueError: no"


def test_a_record_of_before_is_no_others_work() -> None:
    (item,) = cells("ncm")
    record.write(a_record(item.cell, "failed", "last week"), PLACES[0].results / item.cell.id)
    (made,) = grid_of(Players({"ncm": fails}), [item]).run([item])
    assert made.reason == "ValueError: no"


@pytest.mark.parametrize("anew", [True, False])
def test_drafts_of_the_dead_go_and_states_only_if_asked(from_scratch: bool) -> None:
    (item,) = cells("ncm")
    folder = PLACES[0].results / item.cell.id
    save(State({}, {}), folder, 3)
    (folder / f".{RECORD_NAME}.123").write_text("{")
    list(grid_of(Players({"ncm": fails}), [item], from_scratch=from_scratch).run([item]))
    assert list(kept(folder)) == ([] if from_scratch else [3])
    assert {path.name for path in folder.iterdir() if path.is_file()} == {RECORD_NAME, grids.TRACEBACK_NAME}


def test_what_the_crew_did_not_foresee_ends_all_work() -> None:
    first, second = cells("ncm", "finetune")
    executor = Players({}, has_capacity=2)
    grid = grid_of(executor, [first, second])
    executor.poll = lambda seconds: (_ for _ in ()).throw(ZeroDivisionError)  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        list(grid.run([first, second]))
    assert "kill" in executor.requested
    assert all(map(free, (first, second)))


def test_only_one_command_times_inference_at_a_time() -> None:
    lock = claim(PLACES[0].results, grids.MEASURING)
    assert lock is not None
    grid = grid_of(executor := Players({}), [])
    executor.when_idle = lock.release
    assert list(grid.measure([])) == []
    assert isinstance(grid.shown, Shown)
    assert grid.shown.notices == ["another command is timing inference; waiting for it"]


def test_a_session_that_cannot_be_held_keeps_no_other_from_being_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = cells("ncm", "finetune")
    monkeypatch.setattr(grids, "waiting", lambda *_: [(first.cell,), (second.cell,)])
    executor, held = Players({}), []
    monkeypatch.setattr(executor, "hold", lambda cells, *_: held.append(cells[0]) or crew_fails(cells))
    grid = grid_of(executor, [])
    with pytest.raises(RuntimeError, match="ncm cannot be measured; finetune cannot be measured"):
        list(grid.measure([]))
    assert held == [first.cell, second.cell]
    assert free(first)


def crew_fails(cells: Sequence[Cell]) -> Any:
    raise ValueError(f"{cells[0].method.label} cannot be measured")


def test_what_another_command_has_claimed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = cells("ncm", "finetune")
    lock = claim(PLACES[0].results, first.cell.id)
    assert lock is not None
    held: list[Sequence[Cell]] = []
    monkeypatch.setattr(grids, "waiting", lambda *_: [(first.cell, second.cell)])
    monkeypatch.setattr(grids, "keep", lambda *_: None)
    executor = Players({})
    monkeypatch.setattr(executor, "hold", lambda cells, *_: held.append(cells) or {second.cell.id: ()})
    assert list(grid_of(executor, []).measure([])) == [(second.cell,)]
    assert held == [(second.cell,)]
    lock.release()
