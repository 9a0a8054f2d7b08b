"""Peak memory: on a GPU the memory allocated by torch, elsewhere the resident set of the process.

These are different quantities and are never reported under one name. Both include everything in the process,
so a measurement needs a process that does nothing else.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from bench.costs import Peak

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


class Meter(Protocol):
    """Reads the memory use of this process; `kind` names the quantity."""

    kind: Literal["cuda", "rss"]

    def now(self) -> int:
        """Bytes in use."""

    def restart(self) -> None:
        """Start a new peak at the memory that is in use now."""

    def highest(self, baseline: int) -> Peak:
        """The peak since the last restart, with the `baseline` that it is compared with."""


class CudaMeter:
    """Memory allocated by torch's caching allocator, without what CUDA itself uses."""

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
    """The resident set as Linux counts it: all pages in memory, those of mapped files included.

    Args:
        status: the kernel's file with the memory use of this process.
        clear: the kernel's file that resets the peak.
    """

    kind: Literal["cuda", "rss"] = "rss"

    def __init__(self, status: Path = STATUS, clear: Path = CLEAR) -> None:
        self.status, self.clear = status, clear

    def now(self) -> int:
        return self._read("VmRSS")

    def restart(self) -> None:
        self.clear.write_text("5")  # proc(5): resets the high-water mark to what is resident now

    def highest(self, baseline: int) -> Peak:
        return Peak(peak=self._read("VmHWM"), baseline=baseline)

    def can_restart(self) -> bool:
        """Whether the system lets this process reset the peak."""
        try:
            self.restart()
        except OSError:
            return False
        return True

    def _read(self, field: str) -> int:
        """The bytes in a line such as "VmHWM:   13624 kB"."""
        lines = (line.split() for line in self.status.read_text().splitlines())
        return next(1024 * int(line[1]) for line in lines if line[0] == f"{field}:")


def meter_of(device: torch.device, resident: ResidentMeter | None = None) -> Meter | None:
    """The meter of a device; None where the system cannot reset the peak between two phases.

    Args:
        resident: the meter of a CPU; by default one that reads the files of this process.
    """
    if device.type == "cuda":
        return CudaMeter()
    resident = resident or ResidentMeter()
    return resident if resident.can_restart() else None


class PeakMemoryTracker:
    """The peak memory over several blocks of code in this process.

    Create it before the model is built: the memory in use then is the baseline. Memory that was freed before
    is returned to the system, because the model would fill it without a growth that can be seen.

    Attributes:
        meter: None where peaks cannot be measured.
        peak: None before the first block, and without a meter.
    """

    def __init__(self, device: torch.device, resident: ResidentMeter | None = None) -> None:
        settle()
        release()
        self.meter = meter_of(device, resident)
        self.baseline = self.meter.now() if self.meter else 0
        self.peak: Peak | None = None

    @contextmanager
    def track(self) -> Iterator[None]:
        """Include the block in the peak."""
        if self.meter is None:
            yield
            return
        gc.collect()
        self.meter.restart()
        yield
        peak = self.meter.highest(self.baseline)
        self.peak = max(self.peak or peak, peak, key=lambda p: p.peak)


def release() -> None:
    """Return memory that was freed to the system, where the C library can."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Run each kind of kernel once, so that libraries are loaded before a baseline is read."""
    x = torch.ones(2, 3, 32, 32, requires_grad=True)
    tokens = F.conv2d(x, torch.ones(16, 3, 8, 8), stride=8).flatten(2).transpose(1, 2)
    heads = (tokens @ torch.ones(16, 16)).unsqueeze(1)
    F.gelu(F.scaled_dot_product_attention(heads, heads, heads)).sum().backward()  # type: ignore[no-untyped-call]
