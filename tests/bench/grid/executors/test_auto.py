"""The default executor: how many cells at a time, by cells, cores and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.cores import available_memory
from bench.grid.executors import auto
from bench.grid.executors.auto import CELL_BYTES, AutoExecutor
from bench.spec import Device, Settings, settings_from

pytestmark = pytest.mark.usefixtures("machine")


def settings(**values: Any) -> Settings:
    return settings_from({"methods": ["ncm"], "benchmarks": ["digits"], **values})


def test_it_is_the_default() -> None:
    assert settings().executor == AutoExecutor.name == "auto"


@pytest.mark.parametrize(
    ("cells", "device", "memory", "values", "workers", "threads"),
    [
        (27, "cpu", 100, {}, 8, 1),
        (3, "cpu", 100, {}, 3, 2),
        (1, "cpu", 100, {}, 1, 8),
        (27, "cpu", None, {}, 8, 1),
        (27, "cpu", 2.5, {}, 2, 1),
        (27, "cpu", 0.5, {}, 1, 1),
        (27, "cpu", 0.5, {"workers": 4}, 4, 2),
        (27, "cpu", 100, {"threads": 3}, 8, 3),
        (27, "cuda", 100, {}, 1, 8),
    ],
)
def test_a_cell_per_core_as_far_as_memory_goes(
    cells: int,
    device: Device,
    memory: float | None,
    values: dict[str, Any],
    workers: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = None if memory is None else int(memory * CELL_BYTES)
    monkeypatch.setattr(auto, "available_memory", lambda: free)
    parallelism = AutoExecutor.parallelism(settings(**values), device, cells)
    assert (parallelism.workers, parallelism.threads) == (workers, threads)
    assert f"{workers} at a time" in parallelism.description
    assert f"cells: {cells}, cores: 8" in parallelism.description


def test_the_memory_that_linux_says_is_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  24000 kB\nMemFree: 10 kB\nMemAvailable:   20000 kB\n")
    assert available_memory(tmp_path / "meminfo") == 20_000 * 1024
    assert available_memory(tmp_path / "absent") is None
