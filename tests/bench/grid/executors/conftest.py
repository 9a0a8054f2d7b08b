"""A machine of a known size, and a small grid that every executor has to run to the same records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench.cores
from bench.record import RECORD_NAME, Record, read

ROOT = Path(__file__).parents[4]
GRID = ("--methods", "finetune,inflora,ncm", "--scale", "smoke", "--seeds", "0", "--tasks", "3")
GRID += ("--weights", "random", "--threads", "1", "--set", "protocol.epochs=8")

#: Without a token of another cluster, and with a lost node noticed within seconds.
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores and three GPUs."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(bench.cores, "cpu_quota", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def start_grid(results: Path, *options: str) -> subprocess.Popen[str]:
    """The grid, started as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "run", *GRID, "--results", str(results), *options],
        cwd=ROOT,
        env=os.environ | RAY_SETTINGS | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """What a command printed, once it has ended with exit status 0."""
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def records_in(results: Path) -> dict[str, Record]:
    """The records by method."""
    return {record.method: record for record in map(read, results.glob(f"*/{RECORD_NAME}"))}


@pytest.fixture(scope="session")
def serial_records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """The records of the grid, one cell after another."""
    results = tmp_path_factory.mktemp("serial") / "results"
    output_of(start_grid(results))
    return records_in(results)
