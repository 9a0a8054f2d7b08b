"""Cells on this machine: each in a process of its own, as many at a time as there are shares of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from bench.executors import Left, Told, alone
from bench.executors.alone import DiedError, Running, Share
from bench.manifest import Circumstances
from bench.measure import hold
from bench.plan import Places, Planned
from bench.progress import News, Observe
from bench.runner import run_cell
from bench.spec import Cell, Device
from bench.stopping import Stop


def shares_of(device: Device, workers: int, threads: int, gpus: Sequence[str]) -> list[Share]:
    """The machine's shares, one a worker; workers take the GPUs in turn."""
    if device == "cpu" or not gpus:
        return [Share(device, threads)] * workers
    return [Share(device, threads, gpus[i % len(gpus)]) for i in range(workers)]


class Processes:
    """A crew with a worker for each share. `seconds`: what a cell may take, None for any time."""

    def __init__(
        self, shares: Sequence[Share], places: Places, how: Circumstances, seconds: float | None
    ) -> None:
        self.places, self.how, self.seconds = places, how, seconds
        self.free, self.one = list(shares), shares[0]
        self.running: dict[Cell, tuple[Running, Share]] = {}
        self.not_begun: list[Told | Left] = []

    def room(self) -> bool:
        return bool(self.free)

    def take(self, planned: Planned) -> None:
        share = self.free[0]
        try:
            work = alone.start(run_cell, planned, self.places, self.how, share=share, seconds=self.seconds)
        except (OSError, EOFError) as error:  # no process to be had
            told = DiedError(f"its process could not be started ({type(error).__name__}: {error})")
            self.not_begun.append(Left(planned.cell, error=told))
            return
        self.running[planned.cell] = work, self.free.pop(0)

    def hear(self, seconds: float) -> list[Told | Left]:
        heard, self.not_begun = self.not_begun, []
        if not self.running and not heard:
            time.sleep(seconds)
        wait([running.connection for running, _ in self.running.values()], 0 if heard else seconds)
        for cell, (running, share) in list(self.running.items()):
            told: list[News] = []
            answer = running.listen(told.append)
            heard += [Told(cell, news) for news in told]
            if answer is not None:
                del self.running[cell]
                self.free.append(share)
                heard.append(Left(cell, answer.result, answer.error, running.overdue))
        return heard

    def stop(self) -> None:
        for running, _ in self.running.values():
            running.stop()

    def kill(self) -> None:
        for running, _ in self.running.values():
            running.kill()

    def hold(self, cells: Sequence[Cell], tell: Observe, stop: Stop) -> Any:
        return hold(cells, self.places, self.one, tell, stop)
