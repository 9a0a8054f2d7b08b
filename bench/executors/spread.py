"""How a command spreads its cells: how many at a time, on what, and the crew that does it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.manifest import Circumstances
from bench.plan import Places
from bench.spec import Device, Executor, Settings

if TYPE_CHECKING:
    from bench.executors import Crew


@dataclass(frozen=True)
class Spread:
    """`workers` cells at a time, each on `threads` of the CPU; None: as many as a cluster has room for.

    `gpus`: those of this machine that are used, by their names for CUDA; `address`: of the cluster.
    """

    executor: Executor
    device: Device
    workers: int | None
    threads: int
    gpus: tuple[str, ...] = ()
    address: str | None = None

    def in_words(self) -> str:
        """What will run where."""
        where = "a Ray started on this machine" if self.executor == "ray" else "this machine"
        if self.address is not None:
            where = f"the Ray cluster at {self.address}"
        number = (
            "as many cells at a time as there is room for"
            if self.workers is None
            else f"{self.workers} at a time"
        )
        gpus = f", GPUs {', '.join(self.gpus)} in turn" if self.gpus else ""
        a_gpu = " and a GPU" if self.executor == "ray" and self.device == "cuda" else ""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.executor}, on {where}: {number}, each with {threads}{a_gpu} on {self.device}{gpus}"


def spread_of(settings: Settings, device: Device) -> Spread:
    """What the settings ask for, on this machine.

    A worker a GPU, or a core; its share of the threads that torch would take by itself. Ray gives each cell
    one, for it knows its own machines.
    """
    import torch

    threads = torch.get_num_threads()
    if settings.executor == "ray":
        return Spread("ray", device, settings.workers, settings.threads or 1, address=settings.ray_address)
    gpus = visible_gpus() if device == "cuda" and settings.executor == "processes" else ()
    most = (len(gpus) or cores()) if settings.executor == "processes" else 1
    workers = settings.workers or most
    return Spread(settings.executor, device, workers, settings.threads or max(1, threads // workers), gpus)


def cores() -> int:
    """Of the CPU, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    return tuple(str(i) for i in range(torch.cuda.device_count()))


@contextmanager
def crew_of(
    spread: Spread, places: Places, command: str, limit: float | None
) -> Iterator[tuple[Crew, Circumstances]]:
    """Those who will work on the cells, and what their records say of it.

    Args:
        limit: seconds a cell may take; None: any time.
    """
    how = Circumstances(command, spread.executor, spread.workers, spread.threads)
    if spread.executor == "ray":
        from bench.executors.ray_cluster import ray_crew

        with ray_crew(spread, places, how, limit) as crew:
            yield crew, how
        return
    from bench.executors.processes import Processes, shares_of

    assert spread.workers is not None
    shares = shares_of(spread.device, spread.workers, spread.threads, spread.gpus)
    yield Processes(shares, places, how, limit), how
