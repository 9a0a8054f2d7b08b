"""A grid of cells, from the first to the last: who gets what, what is written, and what may go wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock

from bench import checkpoint, record
from bench.claims import MEASURING, claim
from bench.display import Display
from bench.executors import Crew, Left, Told
from bench.executors.alone import DiedError
from bench.manifest import Circumstances, now
from bench.measure import keep, waiting
from bench.plan import DAMAGED, Places, Planned
from bench.progress import Notice
from bench.record import RECORD_NAME, Record, RecordError
from bench.runner import Ended, kept_until, record_of
from bench.spec import Cell
from bench.stopping import Stop
from bench.storage import StorageError, delete, sweep, write_whole

TRACEBACK_NAME = "traceback.txt"
#: Seconds between two looks at what nobody tells: a signal, a lock that was released.
POLL = 0.5


class StoppedError(RuntimeError):
    """The grid was asked to stop, and did."""


@dataclass(frozen=True)
class Before:
    """A record that a command found: its status or `DAMAGED`, its digest, and what is wrong with it."""

    status: str
    digest: str | None
    complaint: str | None = None


def found_before(results: Path, planned: Sequence[Planned]) -> dict[str, Before]:
    """What is on disk of the planned cells, by their id."""
    found = {}
    for item in planned:
        path = results / item.cell.id / RECORD_NAME
        if path.exists():
            found[item.cell.id] = _before(path)
    return found


def _before(path: Path) -> Before:
    digest = record.digest(path)
    try:
        return Before(record.read(path).status, digest)
    except RecordError as error:
        return Before(DAMAGED, digest, str(error))


@dataclass
class Grid:
    """What a command runs, and what it knows.

    `before`: the records there were when the command was planned; what has changed since is another command's
    work, which is not done again. `limit`: seconds a cell may take.
    `anew`: cells start from the beginning, whatever states there are. `ended`: how many cells have run to an
    end since, whoever ran them, and whatever came of it but an interruption.
    """

    places: Places
    how: Circumstances
    crew: Crew
    shown: Display
    stop: Stop
    before: Mapping[str, Before]
    limit: float | None = None
    anew: bool = False

    def __post_init__(self) -> None:
        self.claims: dict[Cell, BaseFileLock] = {}
        self.ended = 0

    # ---- training --------------------------------------------------------------------------------

    def run(self, cells: Sequence[Planned]) -> Iterator[Record]:
        """Run the cells in their order; yield each record as soon as it is on disk.

        Raises:
            StoppedError: once it was asked to stop, and all work has ended.
            StorageError: if the results folder cannot be written to; all work has ended then, too.
        """
        queue, told = list(cells), False
        try:
            while queue or self.claims:
                self._heed_stop()
                yield from self._give_out(queue)
                if queue and not self.claims and not told:
                    told = True
                    theirs = "cell is" if len(queue) == 1 else "cells are"
                    it = "it" if len(queue) == 1 else "them"
                    self.shown.tell(Notice(f"{len(queue)} {theirs} another command's; waiting for {it}"))
                yield from self._note_all(self.crew.hear(POLL))
            self._heed_stop()
        except StorageError:
            self._end_work()
            raise
        finally:  # nothing is left to do here, unless something unforeseen has happened
            self.crew.kill()
            for cell in list(self.claims):
                self._release(cell)

    def _give_out(self, queue: list[Planned]) -> Iterator[Record]:
        """Hand out as much of the queue as there is room for, and nobody else has."""
        for planned in list(queue):
            if not self.crew.room() or self.stop.asked:
                return
            lock = claim(self.places.results, planned.cell.id)
            if lock is None:
                continue
            queue.remove(planned)
            self.claims[planned.cell] = lock
            try:
                done_by_others = self._done_by_others(planned.cell)
            except RecordError as error:
                self.shown.tell(Notice(f"{planned.cell.id} is left alone: {error}"))
                self._release(planned.cell)
                continue
            if done_by_others:
                self.shown.tell(Notice(f"{planned.cell.id}: another command has run it"))
                self._release(planned.cell)
                self._end(planned.cell, done_by_others)
                yield done_by_others
            elif planned.missing is not None:
                self.shown.start(planned)
                yield self._write(planned.cell, Ended(self._record(planned.cell, "skipped", planned.missing)))
            else:
                self._start(planned)

    def _start(self, planned: Planned) -> None:
        folder = self.places.results / planned.cell.id
        sweep(folder)
        sweep(folder / checkpoint.FOLDER)
        if self.anew:
            checkpoint.forget(folder)
        self.shown.start(planned)
        self.crew.take(planned)

    def _done_by_others(self, cell: Cell) -> Record | None:
        path, before = self.places.results / cell.id / RECORD_NAME, self.before.get(cell.id)
        if record.digest(path) in (before and before.digest, None):
            return None
        found = record.read(path)
        return None if found.status == "interrupted" else found

    def _note_all(self, events: Sequence[Told | Left]) -> Iterator[Record]:
        """Note every event, also those behind one that the disk had no room for."""
        failures = []
        for event in events:
            try:
                yield from self._note(event)
            except StorageError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _note(self, event: Told | Left) -> Iterator[Record]:
        if isinstance(event, Told):
            self.shown.tick(event.cell, event.news)
        elif isinstance(event.error, StorageError):
            self._release(event.cell)
            raise event.error
        else:
            yield self._write(event.cell, self._ended(event))

    def _ended(self, event: Left) -> Ended:
        """What a cell left, in the words of the grid."""
        cell = event.cell
        kept = kept_until(cell, self.places)
        if event.ended is not None and event.ended.record.status != "interrupted":
            ended: Ended = event.ended
            return ended
        if event.overdue:
            return Ended(
                self._record(cell, "failed", f"it took longer than the limit, {self.limit:g} s{kept}")
            )
        if self.stop.asked or event.ended is not None:
            return Ended(self._record(cell, "interrupted", f"stopped{kept}"))
        for_memory = isinstance(event.error, DiedError) and event.error.for_memory
        batch = f", with a batch of {cell.protocol.batch_size} images" if for_memory else ""
        status: record.Status = "oom" if for_memory else "failed"
        return Ended(self._record(cell, status, f"{event.error}{batch}{kept}"))

    def _record(self, cell: Cell, status: record.Status, reason: str) -> Record:
        return record_of(cell, self.places, self.how, now(), status, reason)

    def _write(self, cell: Cell, ended: Ended) -> Record:
        """Put a cell's record on disk, and away what it makes useless; it is then free for others."""
        try:
            self._put(self.places.results / cell.id, cell, ended)
        finally:
            self._release(cell)
        self._end(cell, ended.record)
        return ended.record

    def _end(self, cell: Cell, made: Record) -> None:
        self.ended += made.status != "interrupted"
        self.shown.end(cell, made)

    def _put(self, folder: Path, cell: Cell, ended: Ended) -> None:
        made = ended.record
        if made.status == "interrupted" and _is_done(folder):
            checkpoint.forget(folder)  # an interrupted repetition takes nothing away
        else:
            record.write(made, folder)
            _write_traceback(folder, ended.traceback)
        if made.status == "done":
            checkpoint.keep_only(folder, (1, cell.tasks))
        if made.status != "skipped":  # what it was recorded as while its data were missing is out of date
            shutil.rmtree(self.places.results / cell.without_data().id, ignore_errors=True)

    def _release(self, cell: Cell) -> None:
        self.claims.pop(cell).release()

    def _heed_stop(self) -> None:
        if self.stop.asked:
            self._end_work()
            raise StoppedError

    def _end_work(self) -> None:
        """Wait for all work to end; what it leaves is recorded, where that can be."""
        self.crew.stop()
        while self.claims:
            if self.stop.at_once:
                self.crew.kill()
            for event in self.crew.hear(POLL):
                if isinstance(event, Left):
                    self._record_or_release(event)

    def _record_or_release(self, event: Left) -> None:
        try:
            if self.stop.at_once or isinstance(event.error, StorageError):
                self._release(event.cell)
            else:
                self._write(event.cell, self._ended(event))
        except StorageError:  # of the first one that was heard of, the command tells
            return

    # ---- inference -------------------------------------------------------------------------------

    def measure(self, planned: Sequence[Planned]) -> Iterator[tuple[Cell, ...]]:
        """Time the inference of the cells that wait for it; yield each session's cells once that is on disk.

        Raises:
            StoppedError: if it was asked to stop.
            RuntimeError: if a session cannot be held; the others were, and the states it needs stay.
        """
        failures: list[Exception] = []
        with self._only_measuring():
            for cells in waiting(planned, self.places, self.shown.tell):
                self._heed_stop()
                try:
                    with self._claimed(cells) as mine:
                        self._session(mine)
                except KeyboardInterrupt:
                    raise StoppedError from None
                except StorageError:
                    raise
                except Exception as error:  # a device out of memory, a process that was killed, a plugin
                    failures.append(error)
                else:
                    yield mine
        if failures:
            raise RuntimeError("; ".join(dict.fromkeys(map(str, failures))))

    @contextmanager
    def _claimed(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
        """Those of the cells that no other command has claimed, claimed."""
        locks = {cell: claim(self.places.results, cell.id) for cell in cells}
        try:
            yield tuple(cell for cell, lock in locks.items() if lock is not None)
        finally:
            for lock in locks.values():
                if lock is not None:
                    lock.release()

    def _session(self, cells: Sequence[Cell]) -> None:
        if not cells:
            return
        self.shown.measure(cells)
        found = self.crew.hold(cells, self.shown.measuring, self.stop)
        for cell in cells:
            keep(cell, self.places, *found[cell.id])

    @contextmanager
    def _only_measuring(self) -> Iterator[None]:
        told = False
        while (lock := claim(self.places.results, MEASURING)) is None:
            self._heed_stop()
            if not told:
                told = True
                self.shown.tell(Notice("another command is timing inference; waiting for it"))
            self.crew.hear(POLL)
        try:
            yield
        finally:
            lock.release()


def _is_done(folder: Path) -> bool:
    path = folder / RECORD_NAME
    return path.exists() and _before(path).status == "done"


def _write_traceback(folder: Path, text: str | None) -> None:
    if text is None:
        delete(folder / TRACEBACK_NAME)
    else:
        write_whole(folder / TRACEBACK_NAME, text.encode())
