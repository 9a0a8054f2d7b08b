"""Against tensors of known bytes."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.costs import Peak
from bench.probes import memory
from bench.probes.memory import CudaMeter, PeakMemoryTracker, ResidentMeter, meter_of

MIB = 2**20
CPU = torch.device("cpu")

on_linux = pytest.mark.skipif(meter_of(CPU) is None, reason="this system does not reset its high-water mark")


def hold(mebibytes: int) -> torch.Tensor:
    """A tensor whose every page was written to."""
    return torch.ones(mebibytes * MIB // 4)


@on_linux
def test_a_tensor_of_known_bytes_is_seen_though_it_is_gone_again() -> None:
    peak = PeakMemoryTracker(CPU)
    with peak.track():
        hold(64)
    assert peak.peak is not None
    assert 60 * MIB < peak.peak.above < 90 * MIB
    assert peak.peak.reserved is None
    assert peak.meter is not None
    assert peak.meter.kind == "rss"


@on_linux
def test_what_came_before_a_stretch_is_not_its_peak() -> None:
    peak = PeakMemoryTracker(CPU)
    hold(128)
    gc.collect()
    with peak.track():
        hold(16)
    assert peak.peak is not None
    assert peak.peak.above < 100 * MIB


@on_linux
def test_the_highest_of_several_stretches_counts() -> None:
    peak = PeakMemoryTracker(CPU)
    for size in (8, 96, 4):
        with peak.track():
            hold(size)
    assert peak.peak is not None
    assert 90 * MIB < peak.peak.above < 130 * MIB


@on_linux
def test_what_is_kept_stays_in_the_peak_of_later_stretches() -> None:
    peak = PeakMemoryTracker(CPU)
    kept = hold(64)
    with peak.track():
        pass
    assert peak.peak is not None
    assert peak.peak.above > 60 * MIB
    assert len(kept)


def test_where_the_mark_cannot_be_reset_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    peak = PeakMemoryTracker(CPU)
    with peak.track():
        hold(1)
    assert peak.meter is None
    assert peak.peak is None


def test_the_lines_of_the_kernel_are_in_kibibytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   3000 kB\nVmRSS:\t   2000 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert ResidentMeter().now() == 2000 * 1024
    assert ResidentMeter().highest(1024) == Peak(peak=3000 * 1024, baseline=1024)


def test_a_gpu_is_asked_for_what_was_allocated_and_what_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    fake = SimpleNamespace(
        synchronize=lambda: asked.append("synchronize"),
        empty_cache=lambda: asked.append("empty_cache"),
        reset_peak_memory_stats=lambda: asked.append("reset"),
        memory_allocated=lambda: 7,
        max_memory_allocated=lambda: 90,
        max_memory_reserved=lambda: 128,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    meter = meter_of(torch.device("cuda"))
    assert isinstance(meter, CudaMeter)
    baseline = meter.now()
    meter.restart()
    assert asked == ["synchronize", "synchronize", "empty_cache", "reset"]
    peak = meter.highest(baseline)
    assert peak == Peak(peak=90, baseline=7, reserved=128)
    assert peak.above == 83
    assert asked[-1] == "synchronize"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_of_known_bytes_on_a_gpu() -> None:
    peak = PeakMemoryTracker(torch.device("cuda"))
    with peak.track():
        torch.ones(64 * MIB // 4, device="cuda")
    assert peak.peak is not None
    assert peak.peak.above == 64 * MIB
