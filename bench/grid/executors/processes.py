"""Cells on this machine, each in a separate process, several at a time: one per GPU or CPU core."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import ClassVar

from bench.cell.inputs import Paths
from bench.cell.jobs import run_cell
from bench.cell.manifest import RunContext
from bench.cell.outcome import InferenceResult
from bench.cell.progress import Message, Observer
from bench.cores import cores
from bench.grid.executors import CellFinished, CellProgress, Parallelism
from bench.grid.executors.worker_process import DiedError, Resources, Worker, start_worker
from bench.grid.sessions import run_session
from bench.grid.stopping import Stop
from bench.spec import Cell, Device, Settings
from methods.errors import UsageError
from methods.registry import register


@register("processes")
class ProcessExecutor:
    """Runs one cell per entry of `resources` at a time, each in a separate process.

    Args:
        resources: of each worker.
        cell_timeout: seconds a cell may take; None for no limit.
        start: starts a function in a process, as `start_worker` does.
    """

    remote: ClassVar[bool] = False

    def __init__(
        self,
        resources: Sequence[Resources],
        paths: Paths,
        context: RunContext,
        cell_timeout: float | None,
        start: Callable[..., Worker] = start_worker,
    ) -> None:
        self.paths, self.context, self.cell_timeout, self.start = paths, context, cell_timeout, start
        self.idle, self.first = list(resources), resources[0]
        self.running: dict[Cell, tuple[Worker, Resources]] = {}
        self.not_started: list[CellFinished] = []

    # ---- before it is opened -------------------------------------------------------------------------

    @classmethod
    def check(cls, settings: Settings) -> None:
        refuse_ray_address(settings)

    @classmethod
    def parallelism(cls, settings: Settings, device: Device, cells: int) -> Parallelism:
        gpus = visible_gpus() if device == "cuda" else ()
        workers = settings.workers or len(gpus) or cores()
        threads = threads_per_worker(settings, workers)
        return Parallelism(workers, threads, describe(settings, device, workers, threads, gpus))

    @classmethod
    @contextmanager
    def open(
        cls, settings: Settings, device: Device, paths: Paths, context: RunContext
    ) -> Iterator[ProcessExecutor]:
        assert context.workers is not None
        gpus = visible_gpus() if device == "cuda" else ()
        resources = worker_resources(device, context.workers, context.threads, gpus)
        yield cls(resources, paths, context, settings.cell_timeout)

    # ---- the executor --------------------------------------------------------------------------------

    def has_capacity(self) -> bool:
        return bool(self.idle)

    def submit(self, cell: Cell) -> None:
        resources = self.idle[0]
        try:
            worker = self.start(
                run_cell, cell, self.paths, self.context, resources=resources, seconds=self.cell_timeout
            )
        except (OSError, EOFError) as error:  # the system has no process left
            death = DiedError(f"its process could not be started ({type(error).__name__}: {error})")
            self.not_started.append(CellFinished(cell, error=death))
            return
        self.running[cell] = worker, self.idle.pop(0)

    def poll(self, seconds: float) -> list[CellProgress | CellFinished]:
        events: list[CellProgress | CellFinished] = list(self.not_started)
        self.not_started = []
        if not self.running and not events:
            time.sleep(seconds)
        wait([worker.connection for worker, _ in self.running.values()], 0 if events else seconds)
        for cell in list(self.running):
            events += self._events(cell)
        return events

    def _events(self, cell: Cell) -> list[CellProgress | CellFinished]:
        worker, resources = self.running[cell]
        messages: list[Message] = []
        outcome = worker.poll(messages.append)
        events: list[CellProgress | CellFinished] = [CellProgress(cell, message) for message in messages]
        if outcome is not None:
            del self.running[cell]
            self.idle.append(resources)
            events.append(CellFinished(cell, outcome.result, outcome.error, worker.timed_out))
        return events

    def stop(self) -> None:
        for worker, _ in self.running.values():
            worker.stop()

    def kill(self) -> None:
        for worker, _ in self.running.values():
            worker.kill()

    def measure_inference(
        self, cells: Sequence[Cell], observe: Observer, stop: Stop
    ) -> dict[str, InferenceResult]:
        return run_session(cells, self.paths, self.first, observe, stop)


def worker_resources(device: Device, workers: int, threads: int, gpus: Sequence[str]) -> list[Resources]:
    """The resources of each worker; workers take the GPUs in turn."""
    if device == "cpu" or not gpus:
        return [Resources(device, threads)] * workers
    return [Resources(device, threads, gpus[i % len(gpus)]) for i in range(workers)]


def threads_per_worker(settings: Settings, workers: int) -> int:
    """The threads of the settings; else torch's default number, divided by the workers.

    Torch counts the machine's cores; threads beyond the cores of a container only wait for each other.
    """
    import torch

    return settings.threads or max(1, min(torch.get_num_threads(), cores()) // workers)


def describe(settings: Settings, device: Device, workers: int, threads: int, gpus: Sequence[str]) -> str:
    """What runs where, in a line."""
    threads_text = f"{threads} thread{'s' if threads > 1 else ''}"
    gpus_text = f", GPUs {', '.join(gpus)} in turn" if gpus else ""
    return (
        f"{settings.executor}, on this machine: {workers} at a time, each with {threads_text} on {device}"
        f"{gpus_text}"
    )


def visible_gpus() -> tuple[str, ...]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    import torch

    return tuple(str(i) for i in range(torch.cuda.device_count()))


def refuse_ray_address(settings: Settings) -> None:
    """Refuse the address of a Ray cluster, for executors that do not use Ray.

    Raises:
        UsageError: if the settings have one.
    """
    if settings.ray_address is not None:
        raise UsageError(f"ray_address is set, but the executor is {settings.executor}; use --executor ray")
