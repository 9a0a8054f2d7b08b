"""What a grid does with what its crew tells; the crew here only plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import grid as grids
from bench import record
from bench.backbone import MICRO_NAME
from bench.checkpoint import State, kept, save
from bench.claims import claim
from bench.executors import Left, Told
from bench.executors.alone import DiedError
from bench.grid import Grid, StoppedError, found_before
from bench.manifest import Circumstances
from bench.plan import Places, Planned, plan
from bench.progress import News, Notice, Tick
from bench.record import RECORD_NAME, Record, read
from bench.runner import Ended, record_of
from bench.spec import Cell, settings_from
from bench.stopping import Stop
from bench.storage import StorageError

HOW = Circumstances("python -m bench run", "processes", 2, 1)

#: What becomes of a cell: the crew's last word on it.
Fate = Callable[[Cell], Left]


class Players:
    """A crew of one that takes a cell and has the word on it ready at once."""

    def __init__(self, fates: dict[str, Fate], room: int = 1) -> None:
        self.fates, self.most = fates, room
        self.taken: list[Cell] = []
        self.said: list[Told | Left] = []
        self.at_work: list[Cell] = []
        self.asked: list[str] = []
        self.when_idle: Callable[[], None] = lambda: None

    def room(self) -> bool:
        return len(self.at_work) < self.most

    def take(self, planned: Planned) -> None:
        self.taken.append(planned.cell)
        self.at_work.append(planned.cell)
        self.said.append(Told(planned.cell, Tick("learning", 1, 5)))

    def hear(self, seconds: float) -> list[Told | Left]:
        if not self.at_work:
            self.when_idle()
        said, self.said = self.said, []
        ready = [cell for cell in self.at_work if cell.method.label in self.fates]
        self.at_work = [cell for cell in self.at_work if cell not in ready]
        return [*said, *(self.fates[cell.method.label](cell) for cell in ready)]

    def stop(self) -> None:
        self.asked.append("stop")
        self.fates = {cell.method.label: self.fates.get(cell.method.label, ends) for cell in self.at_work}

    def kill(self) -> None:
        self.asked.append("kill")
        self.stop()

    def hold(self, cells: Sequence[Cell], tell: Any, stop: Any) -> Any:
        raise AssertionError("not part of these tests")


class Shown:
    """A display that remembers."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.ended: list[str] = []

    def start(self, planned: Planned) -> None: ...
    def tick(self, cell: Cell, news: News) -> None: ...
    def measure(self, cells: Sequence[Cell]) -> None: ...
    def measuring(self, news: News) -> None: ...

    def end(self, cell: Cell, record: Record) -> None:
        self.ended.append(f"{cell.method.label} {record.status}")

    def tell(self, news: News) -> None:
        assert isinstance(news, Notice)
        self.notices.append(news.text)


def died(cell: Cell) -> Left:
    return Left(cell, error=DiedError("its process was ended by SIGSEGV"))


def starved(cell: Cell) -> Left:
    return Left(cell, error=DiedError("its process was ended by SIGKILL", for_memory=True))


def full(cell: Cell) -> Left:
    return Left(cell, error=StorageError("cannot write 'x' (No space left on device)"))


def late(cell: Cell) -> Left:
    return Left(cell, error=DiedError("its process was ended by SIGKILL"), overdue=True)


def ends(cell: Cell) -> Left:
    """As on Ctrl-C."""
    return Left(cell, ended=Ended(a_record(cell, "interrupted", "stopped")))


def fails(cell: Cell) -> Left:
    return Left(cell, ended=Ended(a_record(cell, "failed", "ValueError: no"), "Traceback: no"))


def a_record(cell: Cell, status: record.Status, reason: str) -> Record:
    return record_of(cell, PLACES[0], HOW, "2025-01-31T12:00:00+00:00", status, reason)


PLACES: list[Places] = []


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    PLACES[:] = [Places((), None, results)]
    monkeypatch.setattr(grids, "POLL", 0.0)


def cells(*methods: str) -> list[Planned]:
    given = {"methods": methods, "benchmarks": ["digits"], "seeds": [0], "backbone": MICRO_NAME}
    return plan(settings_from(given), skip_missing=False)


def grid_of(crew: Players, planned: Sequence[Planned], **settings: Any) -> Grid:
    before = found_before(PLACES[0].results, planned)
    return Grid(PLACES[0], HOW, crew, Shown(), Stop(), before, **settings)


def on_disk(planned: Planned) -> Record:
    return read(PLACES[0].results / planned.cell.id / RECORD_NAME)


def free(planned: Planned) -> bool:
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
    crew = Players({"ncm": fate, "finetune": fails})
    made = list(grid_of(crew, [first, second], **settings).run([first, second]))
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
    crew = Players({"ncm": full}, room=2)
    grid = grid_of(crew, [first, second, third])
    with pytest.raises(StorageError, match="No space left"):
        list(grid.run([first, second, third]))
    assert crew.taken == [first.cell, second.cell]
    assert crew.asked[0] == "stop"
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
    grid = grid_of(Players({"ncm": fails, "finetune": fails}, room=2), [first, second])
    with pytest.raises(StorageError, match="No space left"):
        list(grid.run([first, second]))
    assert on_disk(second).reason == "ValueError: no"
    assert free(first)
    assert free(second)


def test_a_record_that_another_command_left_damaged_stops_nobody() -> None:
    first, second = cells("ncm", "finetune")
    grid = grid_of(crew := Players({"finetune": fails}), [first, second])
    path = PLACES[0].results / first.cell.id / RECORD_NAME
    path.parent.mkdir()
    path.write_text("{")
    (made,) = grid.run([first, second])
    assert made.method == "finetune"
    assert crew.taken == [second.cell]
    assert path.read_text() == "{"
    assert isinstance(grid.shown, Shown)
    assert grid.shown.notices[0].startswith(f"{first.cell.id} is left alone: the record")


def test_a_grid_that_is_stopped_records_what_was_under_way() -> None:
    first, second, third = cells("ncm", "finetune", "joint")
    crew = Players({"ncm": fails}, room=2)
    grid = grid_of(crew, [first, second, third])
    run = grid.run([first, second, third])
    next(run)
    grid.stop.press()
    with pytest.raises(StoppedError):
        next(run)
    assert grid.ended == 1
    assert on_disk(second).status == "interrupted"
    assert not (PLACES[0].results / third.cell.id).exists()
    assert all(map(free, (first, second, third)))


def test_a_cell_that_ends_while_the_grid_stops_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = cells("ncm")
    crew = Players({})
    grid = grid_of(crew, [item])
    monkeypatch.setattr(crew, "stop", lambda: crew.fates.update(ncm=fails))
    monkeypatch.setattr(crew, "take", lambda planned: (Players.take(crew, planned), grid.stop.press()))
    with pytest.raises(StoppedError):
        list(grid.run([item]))
    assert grid.ended == 1
    assert on_disk(item).status == "failed"


def test_a_grid_that_is_stopped_at_once_records_nothing_more() -> None:
    first, second = cells("ncm", "finetune")
    crew = Players({"ncm": fails}, room=2)
    grid = grid_of(crew, [first, second])
    run = grid.run([first, second])
    next(run)
    grid.stop = Stop(asked=True, at_once=True)
    with pytest.raises(StoppedError):
        next(run)
    assert "kill" in crew.asked
    assert not (PLACES[0].results / second.cell.id / RECORD_NAME).exists()
    assert free(second)


def test_a_cell_of_another_command_is_waited_for_and_not_run_twice() -> None:
    first, second = cells("ncm", "finetune")
    lock = claim(PLACES[0].results, first.cell.id)
    assert lock is not None
    crew = Players({"finetune": fails})
    grid = grid_of(crew, [first, second])

    def the_other_one_ends() -> None:
        record.write(a_record(first.cell, "failed", "it broke there"), PLACES[0].results / first.cell.id)
        lock.release()

    crew.when_idle = the_other_one_ends
    made = list(grid.run([first, second]))
    assert crew.taken == [second.cell]
    assert [one.reason for one in made] == ["ValueError: no", "it broke there"]
    assert isinstance(grid.shown, Shown)
    assert grid.shown.notices[0] == "1 cell is another command's; waiting for it"
    assert grid.shown.notices[1] == f"{first.cell.id}: another command has run it"


@pytest.mark.parametrize("left", ["interrupted", None])
def test_a_cell_that_another_command_left_is_taken_over(left: Any) -> None:
    (item,) = cells("ncm")
    lock = claim(PLACES[0].results, item.cell.id)
    assert lock is not None
    crew = Players({"ncm": fails})
    grid = grid_of(crew, [item])

    def the_other_one_is_gone() -> None:
        if left:
            record.write(a_record(item.cell, left, "stopped"), PLACES[0].results / item.cell.id)
        lock.release()

    crew.when_idle = the_other_one_is_gone
    (made,) = grid.run([item])
    assert crew.taken == [item.cell]
    assert made.reason == "ValueError: no"


def test_a_record_of_before_is_no_others_work() -> None:
    (item,) = cells("ncm")
    record.write(a_record(item.cell, "failed", "last week"), PLACES[0].results / item.cell.id)
    (made,) = grid_of(Players({"ncm": fails}), [item]).run([item])
    assert made.reason == "ValueError: no"


@pytest.mark.parametrize("anew", [True, False])
def test_drafts_of_the_dead_go_and_states_only_if_asked(anew: bool) -> None:
    (item,) = cells("ncm")
    folder = PLACES[0].results / item.cell.id
    save(State({}, {}), folder, 3)
    (folder / f".{RECORD_NAME}.123").write_text("{")
    list(grid_of(Players({"ncm": fails}), [item], anew=anew).run([item]))
    assert list(kept(folder)) == ([] if anew else [3])
    assert {path.name for path in folder.iterdir() if path.is_file()} == {RECORD_NAME, grids.TRACEBACK_NAME}


def test_what_the_crew_did_not_foresee_ends_all_work() -> None:
    first, second = cells("ncm", "finetune")
    crew = Players({}, room=2)
    grid = grid_of(crew, [first, second])
    crew.hear = lambda seconds: (_ for _ in ()).throw(ZeroDivisionError)  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        list(grid.run([first, second]))
    assert "kill" in crew.asked
    assert all(map(free, (first, second)))


def test_only_one_command_times_inference_at_a_time() -> None:
    lock = claim(PLACES[0].results, grids.MEASURING)
    assert lock is not None
    grid = grid_of(crew := Players({}), [])
    crew.when_idle = lock.release
    assert list(grid.measure([])) == []
    assert isinstance(grid.shown, Shown)
    assert grid.shown.notices == ["another command is timing inference; waiting for it"]


def test_a_session_that_cannot_be_held_keeps_no_other_from_being_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = cells("ncm", "finetune")
    monkeypatch.setattr(grids, "waiting", lambda *_: [(first.cell,), (second.cell,)])
    crew, held = Players({}), []
    monkeypatch.setattr(crew, "hold", lambda cells, *_: held.append(cells[0]) or crew_fails(cells))
    grid = grid_of(crew, [])
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
    crew = Players({})
    monkeypatch.setattr(crew, "hold", lambda cells, *_: held.append(cells) or {second.cell.id: ()})
    assert list(grid_of(crew, []).measure([])) == [(second.cell,)]
    assert held == [(second.cell,)]
    lock.release()
