"""Synthetic images as a benchmark delivers them."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cell.progress import Message, Observer
from bench.cli import main
from bench.grid import plan
from bench.grid import sessions as measure
from bench.grid.executors.worker_process import Resources, WorkerResult
from tests.conftest import synthetic


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """As in a cell's own process: its collections of garbage do not look through the libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


def arrays(per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (n, 16, 16, 3) and labels (n,) of six classes."""
    x, y = synthetic(per_class)
    pixels = ((x.clamp(-3, 3) + 3) / 6 * 255).byte().permute(0, 2, 3, 1)
    return pixels.numpy(), y.numpy()


def here(work: Callable[..., Any], *arguments: Any, share: Resources, observe: Any, stop: Any) -> Any:
    """In place of `bench.grid.executors.worker_process.alone`: in this process, where a test can watch the work."""
    return work(*arguments, observe)


class Done:
    """In place of `bench.grid.executors.worker_process.Worker`: work that was done in this process, and told later."""

    timed_out = False

    def __init__(
        self, work: Callable[..., Any], *arguments: Any, share: Resources, seconds: float | None
    ) -> None:
        self.news: list[Message] = []
        self.connection, self.other = multiprocessing.Pipe(duplex=False)
        self.other.send("there is something to be heard")
        try:
            self.answer = WorkerResult(work(*arguments, self.news.append))
        except Exception as error:  # as a process of its own does
            self.answer = WorkerResult(error=error)

    def listen(self, observe: Observer) -> WorkerResult:
        for news in self.news:
            observe(news)
        return self.answer

    def stop(self) -> None: ...
    def kill(self) -> None: ...


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run a command in an empty folder, with no data on the machine; gives (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALLORA_BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(alone, "start", Done)
    monkeypatch.setattr(measure, "alone", here)
    monkeypatch.setattr(measure, "BATCHES", {"cpu": (1, 2)})

    def run(*arguments: str) -> tuple[int, str, str]:
        for remembered in (plan.open_benchmark, plan.open_dataset, plan.find_backbone, plan._images):
            remembered.cache_clear()  # every command is a process of its own
        status = main(list(arguments))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
