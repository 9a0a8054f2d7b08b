"""Synthetic images as a benchmark delivers them, and the command line in this process."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cli import main
from tests.bench.in_process import Executors, executors, run_here
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


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host name can be resolved."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run a command in an empty folder, with no data on the machine; returns (status, stdout, stderr).

    Cells run in this process; `executors` may name other executors (see `tests.bench.in_process`).
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALLORA_BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    in_process = executors()

    def run(*arguments: str, executors: Executors = in_process) -> tuple[int, str, str]:
        status = main(list(arguments), executors, start=lambda: run_here)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
