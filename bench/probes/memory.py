"""The highest point of memory in use: on a GPU what torch's allocator gave out, else the resident set.

The two are different quantities and never stand under one name. Both count everything in the process, so
a measurement means something only in a process that has done nothing else.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from bench.costs import Peak

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


class Meter(Protocol):
    """Reads the memory of this process. `kind` is the name of the quantity."""

    kind: Literal["cuda", "rss"]

    def now(self) -> int:
        """Bytes in use."""

    def restart(self) -> None:
        """Forget the highest point so far."""

    def highest(self, baseline: int) -> Peak:
        """The highest point since the last restart, beside what was in use before."""


class CudaMeter:
    """Memory that torch's caching allocator gave out; what CUDA itself takes is not in it."""

    kind: Literal["cuda", "rss"] = "cuda"

    def now(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def restart(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def highest(self, baseline: int) -> Peak:
        torch.cuda.synchronize()
        return Peak(
            peak=torch.cuda.max_memory_allocated(),
            baseline=baseline,
            reserved=torch.cuda.max_memory_reserved(),
        )


class ResidentMeter:
    """The resident set as Linux counts it: all pages in memory, those of files mapped into it too."""

    kind: Literal["cuda", "rss"] = "rss"

    def now(self) -> int:
        return _status("VmRSS")

    def restart(self) -> None:
        CLEAR.write_text("5")  # proc(5): resets the high-water mark to what is resident now

    def highest(self, baseline: int) -> Peak:
        return Peak(peak=_status("VmHWM"), baseline=baseline)


def meter_of(device: torch.device) -> Meter | None:
    """The meter of a device; None where the system cannot tell one phase's highest point from another's."""
    if device.type == "cuda":
        return CudaMeter()
    return ResidentMeter() if _can_restart() else None


class PeakMemoryTracker:
    """The highest point over several stretches of work in this process.

    Made before the model is built: what is in use then is the baseline. `peak` is None until a stretch was
    watched, and where there is no meter.
    """

    def __init__(self, device: torch.device) -> None:
        settle()
        self.meter = meter_of(device)
        self.baseline = self.meter.now() if self.meter else 0
        self.peak: Peak | None = None

    @contextmanager
    def track(self) -> Iterator[None]:
        """Take a stretch of work into account."""
        if self.meter is None:
            yield
            return
        gc.collect()
        self.meter.restart()
        yield
        peak = self.meter.highest(self.baseline)
        self.peak = max(self.peak or peak, peak, key=lambda p: p.peak)


def settle() -> None:
    """Use each kind of kernel once, so that libraries load what they need before a baseline is read."""
    x = torch.ones(2, 3, 32, 32, requires_grad=True)
    tokens = F.conv2d(x, torch.ones(16, 3, 8, 8), stride=8).flatten(2).transpose(1, 2)
    heads = (tokens @ torch.ones(16, 16)).unsqueeze(1)
    F.gelu(F.scaled_dot_product_attention(heads, heads, heads)).sum().backward()  # type: ignore[no-untyped-call]


def _can_restart() -> bool:
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    """Bytes of a line such as "VmHWM:   13624 kB"."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next(1024 * int(line[1]) for line in lines if line[0] == f"{field}:")
