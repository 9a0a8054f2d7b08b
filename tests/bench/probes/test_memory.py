"""Against tensors of known bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.costs import Peak
from bench.probes.memory import CudaMeter, PeakMemoryTracker, ResidentMeter, meter_of

MIB = 2**20
CPU = torch.device("cpu")

on_linux = pytest.mark.skipif(meter_of(CPU) is None, reason="this system does not reset its high-water mark")


def hold(mebibytes: int) -> torch.Tensor:
    """A tensor whose every page was written to."""
    return torch.ones(mebibytes * MIB // 4)


BEFORE = """
from tests.bench.probes.test_memory import CPU, PeakMemoryTracker, hold
tracker = PeakMemoryTracker(CPU)
hold(128)
with tracker.track():
    hold(16)
print(tracker.peak.above)
"""


@on_linux
def test_a_tensor_of_known_bytes_is_measured_though_it_is_freed_again() -> None:
    tracker = PeakMemoryTracker(CPU)
    with tracker.track():
        hold(64)
    assert tracker.peak is not None
    assert 60 * MIB < tracker.peak.above < 90 * MIB
    assert tracker.peak.reserved is None
    assert tracker.meter is not None
    assert tracker.meter.kind == "rss"


@on_linux
def test_memory_used_before_a_block_is_not_in_its_peak() -> None:
    """In a process of its own, as in a cell: what earlier tests have freed may be taken again."""
    out = subprocess.run([sys.executable, "-c", BEFORE], capture_output=True, text=True, check=True).stdout
    assert 10 * MIB < int(out) < 100 * MIB


@on_linux
def test_the_highest_of_several_blocks_counts() -> None:
    tracker = PeakMemoryTracker(CPU)
    for size in (8, 96, 4):
        with tracker.track():
            hold(size)
    assert tracker.peak is not None
    assert 90 * MIB < tracker.peak.above < 130 * MIB


@on_linux
def test_memory_that_is_still_held_is_in_the_peak_of_later_blocks() -> None:
    tracker = PeakMemoryTracker(CPU)
    held = hold(64)
    with tracker.track():
        pass
    assert tracker.peak is not None
    assert tracker.peak.above > 60 * MIB
    assert len(held)


def test_where_the_peak_cannot_be_reset_nothing_is_measured(tmp_path: Path) -> None:
    tracker = PeakMemoryTracker(CPU, ResidentMeter(clear=tmp_path / "none" / "clear_refs"))
    with tracker.track():
        hold(1)
    assert tracker.meter is None
    assert tracker.peak is None


def test_the_lines_of_the_kernel_are_in_kibibytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   3000 kB\nVmRSS:\t   2000 kB\n")
    meter = ResidentMeter(status=tmp_path / "status")
    assert meter.now() == 2000 * 1024
    assert meter.highest(1024) == Peak(peak=3000 * 1024, baseline=1024)


def test_a_gpu_is_asked_for_what_was_allocated_and_what_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fake = SimpleNamespace(
        synchronize=lambda: calls.append("synchronize"),
        empty_cache=lambda: calls.append("empty_cache"),
        reset_peak_memory_stats=lambda: calls.append("reset"),
        memory_allocated=lambda: 7,
        max_memory_allocated=lambda: 90,
        max_memory_reserved=lambda: 128,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    meter = meter_of(torch.device("cuda"))
    assert isinstance(meter, CudaMeter)
    baseline = meter.now()
    meter.restart()
    assert calls == ["synchronize", "synchronize", "empty_cache", "reset"]
    peak = meter.highest(baseline)
    assert peak == Peak(peak=90, baseline=7, reserved=128)
    assert peak.above == 83
    assert calls[-1] == "synchronize"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_of_known_bytes_on_a_gpu() -> None:
    tracker = PeakMemoryTracker(torch.device("cuda"))
    with tracker.track():
        torch.ones(64 * MIB // 4, device="cuda")
    assert tracker.peak is not None
    assert tracker.peak.above == 64 * MIB
