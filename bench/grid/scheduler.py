"""Runs the cells of a grid: locks them, submits them to the executor, and writes their records."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock

from bench import predictions, record
from bench.cell import checkpoint
from bench.cell.inputs import Inputs, Paths
from bench.cell.manifest import RunContext, now
from bench.cell.outcome import CellResult, record_without_results, resume_hint
from bench.cell.progress import Notice
from bench.grid.display import Display
from bench.grid.executors import CellFinished, CellProgress, Executor
from bench.grid.executors.worker_process import DiedError, Resources, RunFunction, run_in_process
from bench.grid.locks import TIMING, acquire_lock
from bench.grid.plan import DAMAGED, PlannedCell
from bench.grid.sessions import pending_sessions, store_inference
from bench.grid.stopping import Stop
from bench.record import RECORD_NAME, Record, RecordError, Status
from bench.spec import Cell
from bench.storage import StorageError, delete, remove_partial_files, write_atomic

TRACEBACK_NAME = "traceback.txt"
#: Seconds between two checks for a signal, or for a lock that was released.
POLL = 0.5


class StoppedError(RuntimeError):
    """A stop of the grid was requested, and every cell has ended."""


@dataclass(frozen=True)
class ExistingRecord:
    """A record that was on disk when the grid was planned.

    Attributes:
        status: its status, or `DAMAGED`.
        digest: hash of the file; None if it disappeared.
        complaint: what is wrong with a damaged one.
    """

    status: str
    digest: str | None
    complaint: str | None = None


def existing_records(results: Path, planned: Sequence[PlannedCell]) -> dict[str, ExistingRecord]:
    """The records on disk of the planned cells, by cell id."""
    paths = {item.cell.id: results / item.cell.id / RECORD_NAME for item in planned}
    return {cell: _read_existing(path) for cell, path in paths.items() if path.exists()}


def _read_existing(path: Path) -> ExistingRecord:
    digest = record.digest(path)
    try:
        return ExistingRecord(record.read(path).status, digest)
    except RecordError as error:
        return ExistingRecord(DAMAGED, digest, str(error))


@dataclass
class Scheduler:
    """Runs cells by an executor.

    Attributes:
        existing: the records that were on disk when the grid was planned; one that has changed since is the
            work of another command, and its cell is not run again.
        cell_timeout: seconds that a cell may take.
        from_scratch: delete the checkpoints of a cell before it is run.
        run_function: runs a function in a process that has imported torch.
        finished: number of cells that have ended since, in this command or another, interruptions excluded.
        poll_seconds: time between two checks for a signal, or for a lock that was released.
    """

    inputs: Inputs
    context: RunContext
    executor: Executor
    display: Display
    stop: Stop
    existing: Mapping[str, ExistingRecord]
    cell_timeout: float | None = None
    from_scratch: bool = False
    run_function: RunFunction = run_in_process
    poll_seconds: float = POLL

    def __post_init__(self) -> None:
        self.locks: dict[Cell, BaseFileLock] = {}
        self.finished = 0

    @property
    def paths(self) -> Paths:
        """The folders of this machine."""
        return self.inputs.paths

    # ---- training --------------------------------------------------------------------------------

    def run(self, cells: Sequence[PlannedCell]) -> Iterator[Record]:
        """Run the cells in the given order; yield each record as soon as it is on disk.

        Raises:
            StoppedError: once a stop was requested, and every cell has ended.
            StorageError: if the results folder cannot be written to, once every cell has ended.
        """
        queue, waiting = list(cells), False
        try:
            while queue or self.locks:
                self._raise_if_stopped()
                yield from self._submit_from(queue)
                if queue and not self.locks and not waiting:
                    waiting = True
                    self.display.notify(Notice(_waiting_notice(len(queue))))
                yield from self._handle_all(self.executor.poll(self.poll_seconds))
            self._raise_if_stopped()
        except StorageError:
            self._end_all()
            raise
        finally:  # has no effect unless an unforeseen error was raised
            self.executor.kill()
            for cell in list(self.locks):
                self._release(cell)

    def _submit_from(self, queue: list[PlannedCell]) -> Iterator[Record]:
        """Submit cells while there is capacity, except those that another command has locked."""
        for planned in list(queue):
            if not self.executor.has_capacity() or self.stop.requested:
                return
            lock = acquire_lock(self.paths.results, planned.cell.id)
            if lock is None:
                continue
            queue.remove(planned)
            self.locks[planned.cell] = lock
            try:
                done_elsewhere = self._done_elsewhere(planned.cell)
            except RecordError as error:
                self.display.notify(Notice(f"{planned.cell.id} is left alone: {error}"))
                self._release(planned.cell)
                continue
            if done_elsewhere:
                self.display.notify(Notice(f"{planned.cell.id}: another command has run it"))
                self._release(planned.cell)
                self._report(planned.cell, done_elsewhere)
                yield done_elsewhere
            elif planned.missing is not None:
                self.display.cell_started(planned)
                skipped = self._record(planned.cell, "skipped", planned.missing)
                yield self._write(planned.cell, CellResult(skipped))
            else:
                self._submit(planned)

    def _submit(self, planned: PlannedCell) -> None:
        folder = self.paths.results / planned.cell.id
        remove_partial_files(folder)
        remove_partial_files(folder / checkpoint.FOLDER)
        if self.from_scratch:
            checkpoint.delete_all(folder)
        self.display.cell_started(planned)
        self.executor.submit(planned.cell)

    def _done_elsewhere(self, cell: Cell) -> Record | None:
        """The record of a cell that another command has run since this one was planned."""
        path, existing = self.paths.results / cell.id / RECORD_NAME, self.existing.get(cell.id)
        if record.digest(path) in (existing and existing.digest, None):
            return None
        current = record.read(path)
        return None if current.status == "interrupted" else current

    def _handle_all(self, events: Sequence[CellProgress | CellFinished]) -> Iterator[Record]:
        """Handle every event, also those after one that could not be written to disk."""
        failures = []
        for event in events:
            try:
                yield from self._handle(event)
            except StorageError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _handle(self, event: CellProgress | CellFinished) -> Iterator[Record]:
        if isinstance(event, CellProgress):
            self.display.cell_progress(event.cell, event.message)
        elif isinstance(event.error, StorageError):
            self._release(event.cell)
            raise event.error
        else:
            yield self._write(event.cell, self._result_of(event))

    def _result_of(self, event: CellFinished) -> CellResult:
        """The cell's own result; where it has none, a record that says what ended the cell."""
        if event.result is not None and event.result.record.status != "interrupted":
            return event.result
        cell, hint = event.cell, resume_hint(event.cell, self.paths)
        if event.timed_out:
            reason = f"it took longer than the limit, {self.cell_timeout:g} s{hint}"
            return CellResult(self._record(cell, "failed", reason))
        if self.stop.requested or event.result is not None:
            return CellResult(self._record(cell, "interrupted", f"stopped{hint}"))
        for_memory = isinstance(event.error, DiedError) and event.error.for_memory
        batch = f", with a batch of {cell.protocol.batch_size} images" if for_memory else ""
        status: Status = "oom" if for_memory else "failed"
        return CellResult(self._record(cell, status, f"{event.error}{batch}{hint}"))

    def _record(self, cell: Cell, status: Status, reason: str) -> Record:
        return record_without_results(cell, self.inputs, self.context, now(), status, reason)

    def _write(self, cell: Cell, result: CellResult) -> Record:
        """Write the record of a cell, delete the files that it makes obsolete, and unlock the cell."""
        try:
            self._put(self.paths.results / cell.id, cell, result)
        finally:
            self._release(cell)
        self._report(cell, result.record)
        return result.record

    def _report(self, cell: Cell, finished: Record) -> None:
        self.finished += finished.status != "interrupted"
        self.display.cell_finished(cell, finished)

    def _put(self, folder: Path, cell: Cell, result: CellResult) -> None:
        finished = result.record
        if finished.status == "interrupted" and _is_done(folder):
            checkpoint.delete_all(folder)  # the record of before the interrupted repetition stays
        else:
            _write_predictions(folder, result)  # before the record that names them
            record.write(finished, folder)
            _delete_other_predictions(folder, finished)
            _write_traceback(folder, result.traceback)
        if finished.status == "done":
            checkpoint.prune(folder, (1, cell.tasks))
        if finished.status != "skipped":  # a record from when its data were missing is obsolete
            shutil.rmtree(self.paths.results / cell.without_data().id, ignore_errors=True)

    def _release(self, cell: Cell) -> None:
        self.locks.pop(cell).release()

    def _raise_if_stopped(self) -> None:
        if self.stop.requested:
            self._end_all()
            raise StoppedError

    def _end_all(self) -> None:
        """Stop every cell and wait until it has ended; write its record where that is possible."""
        self.executor.stop()
        while self.locks:
            if self.stop.immediate:
                self.executor.kill()
            for event in self.executor.poll(self.poll_seconds):
                if isinstance(event, CellFinished):
                    self._write_or_release(event)

    def _write_or_release(self, event: CellFinished) -> None:
        try:
            if self.stop.immediate or isinstance(event.error, StorageError):
                self._release(event.cell)
            else:
                self._write(event.cell, self._result_of(event))
        except StorageError:  # the first one is reported by the caller
            return

    # ---- inference -------------------------------------------------------------------------------

    def measure(self, planned: Sequence[PlannedCell]) -> Iterator[tuple[Cell, ...]]:
        """Time the inference of the cells that need it; yield the cells of each session once it is on disk.

        Raises:
            StoppedError: if a stop was requested.
            RuntimeError: if sessions could not be run; all others were, and the checkpoints of these stay.
        """
        failures: list[Exception] = []
        with self._timing_lock():
            for cells in self._pending_sessions(planned):
                self._raise_if_stopped()
                try:
                    with self._locked(cells) as own:
                        self._session(own)
                except KeyboardInterrupt:
                    raise StoppedError from None
                except StorageError:
                    raise
                except Exception as error:  # a device out of memory, a process that was killed, a plugin
                    failures.append(error)
                else:
                    yield own
        if failures:
            raise RuntimeError("; ".join(dict.fromkeys(map(str, failures))))

    def _pending_sessions(self, planned: Sequence[PlannedCell]) -> list[tuple[Cell, ...]]:
        try:
            sessions: list[tuple[Cell, ...]] = self.run_function(
                pending_sessions,
                planned,
                self.paths,
                resources=Resources("cpu"),
                observe=self.display.notify,
                stop=self.stop,
            )
        except KeyboardInterrupt:
            raise StoppedError from None
        return sessions

    @contextmanager
    def _locked(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
        """Lock the cells, except those that another command has locked; yields the locked ones."""
        locks = {cell: acquire_lock(self.paths.results, cell.id) for cell in cells}
        try:
            yield tuple(cell for cell, lock in locks.items() if lock is not None)
        finally:
            for lock in locks.values():
                if lock is not None:
                    lock.release()

    def _session(self, cells: Sequence[Cell]) -> None:
        if not cells:
            return
        self.display.session_started(cells)
        results = self.executor.measure_inference(cells, self.display.session_progress, self.stop)
        for cell in cells:
            store_inference(cell, self.paths, results[cell.id])

    @contextmanager
    def _timing_lock(self) -> Iterator[None]:
        waiting = False
        while (lock := acquire_lock(self.paths.results, TIMING)) is None:
            self._raise_if_stopped()
            if not waiting:
                waiting = True
                self.display.notify(Notice("another command is timing inference; waiting for it"))
            self.executor.poll(self.poll_seconds)
        try:
            yield
        finally:
            lock.release()


def _waiting_notice(cells: int) -> str:
    subject = "1 cell is" if cells == 1 else f"{cells} cells are"
    return f"{subject} being run by another process; waiting"


def _is_done(folder: Path) -> bool:
    path = folder / RECORD_NAME
    return path.exists() and _read_existing(path).status == "done"


def _write_predictions(folder: Path, result: CellResult) -> None:
    if result.predictions is not None and result.record.predictions is not None:
        write_atomic(folder / result.record.predictions.file, result.predictions)


def _delete_other_predictions(folder: Path, finished: Record) -> None:
    current = finished.predictions.file if finished.predictions else None
    for path in folder.glob(predictions.PATTERN):
        if path.name != current:
            delete(path)


def _write_traceback(folder: Path, text: str | None) -> None:
    if text is None:
        delete(folder / TRACEBACK_NAME)
    else:
        write_atomic(folder / TRACEBACK_NAME, text.encode())
