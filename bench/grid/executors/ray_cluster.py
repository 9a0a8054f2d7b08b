"""Cells on a Ray cluster: each is a Ray task with CPUs and a GPU, on a machine that Ray chooses.

A task runs its cell in a separate process, so failures of a cell are recorded as by the other executors. Ray
places the tasks, and runs them again if a machine is lost. Records are returned through Ray; so are
checkpoints, from machines that do not share the results folder.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, ClassVar

from bench.benchmarks.base import data_roots
from bench.cell import checkpoint
from bench.cell.inputs import Paths
from bench.cell.jobs import run_cell
from bench.cell.manifest import RunContext, code_sha256
from bench.cell.outcome import CellResult, InferenceResult
from bench.cell.progress import Message, Notice, Observer, ProgressUpdate
from bench.cores import cores
from bench.grid.executors import CellFinished, CellProgress, Parallelism
from bench.grid.executors.worker_process import (
    POLL,
    DiedError,
    Resources,
    Worker,
    WorkerResult,
    start_worker,
)
from bench.grid.locks import FOLDER
from bench.grid.sessions import run_session
from bench.grid.stopping import Stop, stop_on_signals
from bench.spec import Cell, Device, Settings
from bench.storage import StorageError, write_atomic
from methods.errors import UsageError
from methods.registry import METHODS, register

#: How often a cell is started again after the machine or the process that ran it was lost.
RETRIES = 3
#: Seconds between two progress updates of a task.
UPDATE_SECONDS = 1.0

#: Seconds within which the address of a cluster has to answer; Ray itself tries for many minutes.
CONNECT_SECONDS = 5.0

#: No usage statistics are sent, and Ray does not hide the GPUs from tasks that request none.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
#: Seconds within which Ray ends the processes of a machine that it considers lost.
NODE_ENDS = 3.0

#: Checkpoint files of a cell: name -> content.
Checkpoints = Mapping[str, bytes]


@dataclass(frozen=True)
class TaskResult:
    """The result of a Ray task; `checkpoints` are those that are not in the results folder."""

    result: CellResult | None = None
    error: Exception | None = None
    timed_out: bool = False
    checkpoints: Checkpoints = field(default_factory=dict)


class ProgressActor:
    """Collects the messages of tasks; a Ray actor on the machine of the command that started the grid."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []
        self.starts: dict[str, int] = {}

    def count_start(self, cell: str) -> int:
        """Count a start of the cell; returns the number of its starts."""
        self.starts[cell] = self.starts.get(cell, 0) + 1
        return self.starts[cell]

    def add(self, cell: str, message: Message) -> None:
        """Add a message of a cell."""
        self.messages.append((cell, message))

    def take_all(self) -> list[tuple[str, Message]]:
        """The messages since the last call, with the ids of their cells."""
        messages, self.messages = self.messages, []
        return messages


@register("ray")
class RayExecutor:
    """Runs each cell as a Ray task.

    Args:
        max_cells: cells at a time; None for as many as fit.
        token: a file in the results folder; a machine on which it exists shares the folder.
    """

    remote: ClassVar[bool] = True

    def __init__(
        self,
        ray: Any,
        resources: Resources,
        max_cells: int | None,
        paths: Paths,
        context: RunContext,
        cell_timeout: float | None,
        token: Path,
    ) -> None:
        self.ray, self.resources, self.max_cells, self.paths = ray, resources, max_cells, paths
        self.context, self.cell_timeout, self.token = context, cell_timeout, token
        self.refs: dict[Any, Cell] = {}
        self.notices: list[CellProgress] = []
        local = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        actor = ray.remote(num_cpus=0, max_restarts=-1)(ProgressActor)
        self.progress = actor.options(scheduling_strategy=local).remote()
        self.task_options = {
            "num_cpus": resources.threads or 1,
            "num_gpus": 1 if resources.device == "cuda" else 0,
            "max_retries": RETRIES,
        }

    # ---- before it is opened -------------------------------------------------------------------------

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Every combination of settings suits Ray."""

    @classmethod
    def parallelism(cls, settings: Settings, device: Device, cells: int) -> Parallelism:
        threads = settings.threads or 1
        address = settings.ray_address
        where = "a Ray started on this machine" if address is None else f"the Ray cluster at {address}"
        number = (
            f"{settings.workers} at a time"
            if settings.workers
            else "as many cells at a time as there is room for"
        )
        gpu = " and a GPU" if device == "cuda" else ""
        threads_text = f"{threads} thread{'s' if threads > 1 else ''}"
        return Parallelism(
            settings.workers, threads, f"ray, on {where}: {number}, each with {threads_text}{gpu} on {device}"
        )

    @classmethod
    @contextmanager
    def open(
        cls, settings: Settings, device: Device, paths: Paths, context: RunContext
    ) -> Iterator[RayExecutor]:
        """Connect to the cluster, or start a local Ray that ends with the context.

        Raises:
            UsageError: if Ray is not installed, or there is no cluster at the address.
        """
        threads = context.threads
        ray = _connect(settings.ray_address, threads * (settings.workers or 1))
        absolute = replace(paths, results=paths.results.absolute())
        token = absolute.results / FOLDER / f"{uuid.uuid4().hex}.here"
        try:
            write_atomic(token, b"")
            resources = Resources(device, threads)
            yield cls(ray, resources, settings.workers, absolute, context, settings.cell_timeout, token)
        finally:
            token.unlink(missing_ok=True)
            ray.shutdown()

    # ---- the executor --------------------------------------------------------------------------------

    def has_capacity(self) -> bool:
        return len(self.refs) < max(1, self.max_cells or self.capacity())

    def capacity(self) -> int:
        """Number of cells that fit on the machines that are alive."""
        return sum(self._fit(node["Resources"]) for node in self.ray.nodes() if node["Alive"])

    def _fit(self, available: Mapping[str, float]) -> int:
        cpus = int(available.get("CPU", 0) // self.task_options["num_cpus"])
        return min(cpus, int(available.get("GPU", 0))) if self.task_options["num_gpus"] else cpus

    def submit(self, cell: Cell) -> None:
        task = self.ray.remote(run_task).options(**self.task_options, name=cell.id)
        ref = task.remote(
            cell,
            self.paths,
            self.context,
            self.resources,
            self.cell_timeout,
            self.token,
            code_sha256(METHODS[cell.method.name].load()),
            self.progress,
            self._put_checkpoints([cell]),
        )
        self.refs[ref] = cell
        if self.capacity() == 0:
            self.notices.append(CellProgress(cell, Notice(self._no_capacity_notice())))

    def _no_capacity_notice(self) -> str:
        gpu = " and a GPU" if self.task_options["num_gpus"] else ""
        return (
            f"no node of the cluster has {self.task_options['num_cpus']} CPUs{gpu} at present; the cell "
            "waits for one to join; with fewer --threads it may fit on the nodes that are alive"
        )

    def _put_checkpoints(self, cells: Sequence[Cell]) -> list[Any]:
        """The checkpoints of cells in Ray's store, for machines that do not share the results folder."""
        files = {cell.id: read_checkpoints(self.paths.results / cell.id) for cell in cells}
        return [self.ray.put(files)] if any(files.values()) else []

    def poll(self, seconds: float) -> list[CellProgress | CellFinished]:
        if self.refs:
            self.ray.wait(list(self.refs), timeout=seconds)
        else:
            time.sleep(seconds)
        events: list[CellProgress | CellFinished] = [*self.notices, *self._progress_events()]
        self.notices = []
        ready, _ = (
            self.ray.wait(list(self.refs), num_returns=len(self.refs), timeout=0) if self.refs else ([], [])
        )
        return events + [self._finish(ref) for ref in ready]

    def _progress_events(self) -> Iterator[CellProgress]:
        running = {cell.id: cell for cell in self.refs.values()}
        for cell, message in self._messages():
            if cell in running:
                yield CellProgress(running[cell], message)

    def _messages(self) -> list[tuple[str, Message]]:
        try:
            messages: list[tuple[str, Message]] = self.ray.get(
                self.progress.take_all.remote(), timeout=10 * POLL
            )
        except self.ray.exceptions.RayError:  # a lost actor is restarted, and only messages are lost
            return []
        return messages

    def _finish(self, ref: Any) -> CellFinished:
        cell = self.refs.pop(ref)
        try:
            task: TaskResult = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            return CellFinished(cell, error=_translate(self.ray, error))
        try:
            write_checkpoints(self.paths.results / cell.id, task.checkpoints)
        except StorageError as error:
            return CellFinished(cell, error=error)
        return CellFinished(cell, task.result, task.error, task.timed_out)

    def stop(self) -> None:
        for ref in self.refs:
            self.ray.cancel(ref)

    def kill(self) -> None:
        for ref in self.refs:
            self.ray.cancel(ref, force=True)

    def measure_inference(
        self, cells: Sequence[Cell], observe: Observer, stop: Stop
    ) -> dict[str, InferenceResult]:
        task = self.ray.remote(session_task).options(**self.task_options)
        checkpoints = self._put_checkpoints(cells)
        ref = task.remote(cells, self.paths, self.resources, self.token, self.progress, checkpoints)
        while not (stop.requested or self.ray.wait([ref], timeout=POLL)[0]):
            for _, message in self._messages():
                observe(message)
        if stop.requested:
            self._cancel(ref, stop)
            raise KeyboardInterrupt
        try:
            results: dict[str, InferenceResult] = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            raise _translate(self.ray, error) from None
        return results

    def _cancel(self, ref: Any, stop: Stop) -> None:
        """Cancel a task and wait for it. Ray treats a second cancel as a forced kill, so cancel once."""
        self.ray.cancel(ref)
        while not self.ray.wait([ref], timeout=POLL)[0]:
            if stop.immediate:
                self.ray.cancel(ref, force=True)


def _connect(address: str | None, cpus: int) -> Any:
    """The module `ray`, connected to the cluster at `address`, or to a new local one with at least `cpus`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        # Otherwise Ray writes a token into the home folder, which clusters started later require.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--executor ray needs the package ray: pip install 'duallora-bench[ray]'; "
            "without it there is --executor processes"
        ) from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            _check_reachable(address)
            ray.init(address=address, **quiet)
        else:
            cpus = max(cores(), cpus)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or "this machine"
        first_line = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"cannot use Ray at {where} ({type(error).__name__}: {first_line}); start it: ray start --head; "
            "give its --ray-address HOST:PORT (with RAY_AUTH_MODE=token, if it asks for a token), or leave "
            "that option out to start a local one"
        ) from None
    return ray


def _check_reachable(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT; other forms of an address are left to Ray."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _translate(ray: Any, error: Any) -> Exception:
    """The error that a task raised; for an error of Ray itself, a `DiedError` that says what happened."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(cause, Exception):
        return cause
    first_line = str(error).strip().partition("\n")[0]
    return DiedError(
        f"{type(error).__name__} of Ray, after {RETRIES} more attempts: {first_line}",
        for_memory=isinstance(error, ray.exceptions.OutOfMemoryError),
    )


def read_checkpoints(folder: Path) -> Checkpoints:
    """The checkpoint files of a cell."""
    return {path.name: path.read_bytes() for path in checkpoint.list_checkpoints(folder).values()}


def write_checkpoints(cell: Path, checkpoints: Checkpoints) -> None:
    """Write checkpoint files into the folder of a cell; each replaces any other of the same number of tasks.

    Raises:
        StorageError: if they cannot be written.
    """
    for name, content in checkpoints.items():
        checkpoint.store(cell / checkpoint.FOLDER / name, content)


# ---- on the machine that runs the task ---------------------------------------------------------------


def run_task(
    cell: Cell,
    paths: Paths,
    context: RunContext,
    resources: Resources,
    cell_timeout: float | None,
    token: Path,
    code: str,
    progress: Any,
    checkpoints: Sequence[Any],
) -> TaskResult:
    """Run a cell in a separate process; a failure of the cell is returned, not raised."""
    _check_code(cell, code)
    if _count_start(progress, cell) > RETRIES + 1:
        lost = DiedError(f"the machine or the process that ran it was lost {RETRIES + 1} times")
        return TaskResult(error=lost)
    with _local_paths(paths, token, [cell], checkpoints) as local:
        observe = _sender(progress, cell.id)
        observe(Notice(f"runs on {socket.gethostname()}"))
        worker = start_worker(run_cell, cell, local, context, resources=resources, seconds=cell_timeout)
        outcome = _wait_for(worker, observe)
        new = read_checkpoints(local.results / cell.id) if local.results != paths.results else {}
        return TaskResult(outcome.result, outcome.error, worker.timed_out, new)


def _wait_for(worker: Worker, observe: Observer) -> WorkerResult:
    """The worker's result. Ray cancels a task by an interrupt, which then stops the worker."""
    result = None
    with stop_on_signals() as stop:
        while result is None:
            wait([worker.connection], POLL)
            if stop.requested:
                worker.stop()
            result = worker.poll(observe)
    if isinstance(result.error, DiedError):
        time.sleep(
            NODE_ENDS
        )  # if this machine is lost, the task ends here, and the cell is not recorded as failed
    return result


def _count_start(progress: Any, cell: Cell) -> int:
    import ray

    with suppress(ray.exceptions.RayError):
        return int(ray.get(progress.count_start.remote(cell.id), timeout=60))
    return 1


def _check_code(cell: Cell, code: str) -> None:
    if code_sha256(METHODS[cell.method.name].load()) != code:
        raise UsageError(
            f"the machine '{socket.gethostname()}' runs other code than the machine that started the grid; "
            "install the same version of this project and of the method's package on all machines"
        )


def session_task(
    cells: Sequence[Cell],
    paths: Paths,
    resources: Resources,
    token: Path,
    progress: Any,
    checkpoints: Sequence[Any],
) -> dict[str, InferenceResult]:
    """Run a timing session; returns the results by cell id."""
    with _local_paths(paths, token, cells, checkpoints) as local, stop_on_signals() as stop:
        return run_session(cells, local, resources, _sender(progress, ""), stop)


@contextmanager
def _local_paths(
    paths: Paths, token: Path, cells: Sequence[Cell], checkpoints: Sequence[Any]
) -> Iterator[Paths]:
    """The paths on this machine: with the results folder if it is shared, else with a temporary one."""
    paths = replace(paths, roots=tuple(dict.fromkeys((*paths.roots, *data_roots(None)))))
    if token.exists():
        yield paths
        return
    import ray

    with tempfile.TemporaryDirectory(prefix="duallora-bench-") as folder:
        files = ray.get(checkpoints[0]) if checkpoints else {}
        for cell in cells:
            write_checkpoints(Path(folder) / cell.id, files.get(cell.id, {}))
        yield replace(paths, results=Path(folder))


def _sender(progress: Any, cell: str) -> Observer:
    """Sends to the actor every notice, and an update when a task starts or `UPDATE_SECONDS` have passed."""
    last: list[Any] = [0.0, None]

    def send(message: Message) -> None:
        stage = (message.activity, message.experience) if isinstance(message, ProgressUpdate) else None
        due = time.monotonic() - last[0] >= UPDATE_SECONDS
        if isinstance(message, Notice) or stage != last[1] or due:
            last[:] = [time.monotonic(), stage]
            progress.add.remote(cell, message)

    return send
