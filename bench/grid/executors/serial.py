"""Cells on this machine, one at a time, each in a separate process; the default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.cell.inputs import Paths
from bench.cell.manifest import RunContext
from bench.grid.executors import Parallelism
from bench.grid.executors.processes import ProcessExecutor, describe, refuse_ray_address, threads_per_worker
from bench.grid.executors.worker_process import Resources
from bench.spec import Device, Settings
from methods.errors import UsageError
from methods.registry import register


@register("serial")
class SerialExecutor(ProcessExecutor):
    """A `ProcessExecutor` with one worker, which has all GPUs and all threads."""

    @classmethod
    def check(cls, settings: Settings) -> None:
        refuse_ray_address(settings)
        if (settings.workers or 1) > 1:
            raise UsageError(
                f"workers is {settings.workers}, but the executor serial runs one cell at a time; legal: 1, "
                "or --executor processes, --executor ray"
            )

    @classmethod
    def parallelism(cls, settings: Settings, device: Device, cells: int) -> Parallelism:
        threads = threads_per_worker(settings, 1)
        return Parallelism(1, threads, describe(settings, device, 1, threads, ()))

    @classmethod
    @contextmanager
    def open(
        cls, settings: Settings, device: Device, paths: Paths, context: RunContext
    ) -> Iterator[SerialExecutor]:
        yield cls([Resources(device, context.threads)], paths, context, settings.cell_timeout)
