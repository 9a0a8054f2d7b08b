"""Probes against known answers, and cells against equal cells, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.cell import resume
from bench.cell.backbone import MICRO_NAME, RANDOM, Backbone, build
from bench.cell.manifest import RunContext
from bench.cell.precision import autocast
from bench.cell.progress import ignore
from bench.cell.rng import seed_everything
from bench.cell.runner import images_like, run_cell
from bench.probes.energy import counter_of
from bench.probes.latency import clock_of, wall_clock
from bench.probes.memory import PeakMemoryTracker
from bench.probes.training import PhaseTimer
from bench.record import Record
from scripts.common import MEAN, STD, plan_cells
from scripts.perf.end_to_end import evaluated_images

MIB = 2**20
HELD = 256 * MIB
#: Share by which a resident set may differ from the bytes of its tensors: it has other pages, too.
RESIDENT = 0.2
#: Cycles of a kernel that does nothing else: 0.1 s at 2 GHz.
CYCLES = 200_000_000
SLEEP = 0.1
#: Share by which two clocks of one kernel may differ.
CLOCKS = 0.1
#: Relative errors that bfloat16's 8 bits leave in features; in fp32 there is none.
ROUNDING = (1e-5, 0.1)
#: Watts of a device that computes.
POWER = (5.0, 3000.0)
#: Share of the predictions in which two runs of a cell on a GPU may differ beyond what two others do: sums of
#: a backward pass have no fixed order there.
DRIFT = 0.02

#: A cell that takes seconds.
CELL = "--scale smoke --tasks 3 --seeds 0 --threads 1"
CONTEXT = RunContext(command=None, executor="serial", workers=1, threads=1)


@dataclass(frozen=True)
class Check:
    """What was expected, what was found, and whether that is as expected."""

    expected: str
    found: str
    passed: bool


#: Makes a check on a device; cells are run below the folder.
Make = Callable[[torch.device, Path], Check]


def guarded(make: Callable[[], Check]) -> Check:
    """The check that a function makes; a failed one if it raises, so that others are made all the same."""
    try:
        return make()
    except Exception as error:  # of any type: what a device or its driver raises is not known
        return Check("no error", f"{type(error).__name__}: {' '.join(str(error).split())}", False)


# ---- memory ---------------------------------------------------------------------------------------------


def memory(device: torch.device, folder: Path) -> Check:
    """The tracker against a tensor of known bytes that is freed again."""
    tracker = PeakMemoryTracker(device)
    with tracker.track():
        hold(HELD, device)
    return of_bytes(HELD, tracker, device)


def memory_of_block(device: torch.device, folder: Path) -> Check:
    """The tracker does not count what was allocated and freed before its block."""
    tracker = PeakMemoryTracker(device)
    hold(2 * HELD, device)
    with tracker.track():
        hold(HELD, device)
    return of_bytes(HELD, tracker, device)


def hold(size: int, device: torch.device) -> torch.Tensor:
    """A tensor of so many bytes, every page of which was written to."""
    return torch.ones(size // 4, device=device)


def of_bytes(size: int, tracker: PeakMemoryTracker, device: torch.device) -> Check:
    """A peak above the baseline; on a GPU it is exact."""
    found = tracker.peak.above if tracker.peak is not None else 0
    tolerance = 0 if device.type == "cuda" else int(RESIDENT * size)
    expected = f"{size / MIB:.0f} MiB" + (f" ± {tolerance / MIB:.0f}" if tolerance else "")
    return Check(expected, f"{found / MIB:.1f} MiB", abs(found - size) <= tolerance)


# ---- time -----------------------------------------------------------------------------------------------


def clock_of_inference(device: torch.device, folder: Path) -> Check:
    """The clock of latencies against a kernel that the host waits for."""
    return of_seconds(waited(device), clock_of(device)(busy(device)))


def clock_of_training(device: torch.device, folder: Path) -> Check:
    """The seconds of an experience whose training is a kernel that the host waits for."""
    expected, strategy, timer = waited(device), SimpleNamespace(device=device), PhaseTimer()
    timer.before_training_exp(strategy)
    busy(device)()
    timer.after_training_exp(strategy)
    return of_seconds(expected, timer.ended - timer.began)


def clock_without_waiting(device: torch.device, folder: Path) -> Check:
    """The host's clock measures only the start of a kernel if nothing waits for its end."""
    limit = CLOCKS * waited(device)
    launched = wall_clock(busy(device))
    wait(device)
    return Check(f"below {limit:.4f} s", f"{launched:.4f} s", launched < limit)


def waited(device: torch.device) -> float:
    """Seconds by the host's clock until the device has finished what `busy` starts."""
    work = busy(device)
    work()  # loads the kernel
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def busy(device: torch.device) -> Callable[[], object]:
    """Occupies the device for a time, always the same."""
    if device.type == "cuda":
        return partial(torch.cuda._sleep, CYCLES)
    return partial(time.sleep, SLEEP)


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def of_seconds(expected: float, found: float) -> Check:
    """Two times of one kernel."""
    passed = abs(found - expected) <= CLOCKS * expected
    return Check(f"{expected:.4f} s ± {CLOCKS:.0%}", f"{found:.4f} s", passed)


def energy(device: torch.device, folder: Path) -> Check:
    """The energy counter against the power that a device can take; null where there is no counter."""
    counter = counter_of(device)
    if counter is None:
        return Check("null: there is no counter", "null", True)
    start, before = time.perf_counter(), counter()
    for _ in range(10):
        busy(device)()
    wait(device)
    power = (counter() - before) / (time.perf_counter() - start)
    low, high = POWER
    return Check(f"{low:.0f} to {high:.0f} W", f"{power:.0f} W", low <= power <= high)


# ---- precision ------------------------------------------------------------------------------------------


def bfloat16(device: torch.device, folder: Path) -> Check:
    """The features of a ViT under the precision bf16 against those under fp32."""
    seed_everything(0)
    model = build(Backbone(MICRO_NAME, None, RANDOM, MEAN, STD), 32).to(device)
    images = images_like(8, 32, device)
    with torch.no_grad():
        exact = model(images)
        with autocast(device, "bf16"):
            rounded = model(images)
    error = float((rounded.float() - exact).norm() / exact.norm())
    low, high = ROUNDING
    return Check(f"relative error {low:g} to {high:g}", f"{error:.2g}", low <= error <= high)


# ---- cells ----------------------------------------------------------------------------------------------


def resuming(device: torch.device, folder: Path) -> Check:
    """A cell that was interrupted after its first task against one that was not, and two such ones."""
    whole, again = (finished("finetune", device, folder / name) for name in ("whole", "again"))
    run("finetune", device, folder / "stopped", stopping)
    resumed = finished("finetune", device, folder / "stopped")
    noise, found = (different(whole, other) for other in (again, resumed))
    images = evaluated_images(whole)
    allowed = noise + (int(DRIFT * images) if device.type == "cuda" else 0)
    return Check(
        f"resumed after [1]; at most {allowed} more or fewer hits of {images}",
        f"resumed after {resumed.manifest.resumed}; {found}",
        resumed.manifest.resumed == [1] and found <= allowed,
    )


def features(device: torch.device, folder: Path) -> Check:
    """A cell whose features are computed against one that reads them."""
    cold, warm = (finished("linear-probe", device, folder / name) for name in ("cold", "warm"))
    passed = [record.cost.feature_images for record in (cold, warm) if record.cost is not None]
    found, images = different(cold, warm), evaluated_images(warm)
    allowed = int(DRIFT * images) if device.type == "cuda" else 0
    return Check(
        f"the second cell passes 0 images; at most {allowed} more or fewer hits of {images}",
        f"{passed[-1]} after {passed[0]}; {found}",
        passed[-1] == 0 and bool(passed[0]) and found <= allowed,
    )


def run(method: str, device: torch.device, results: Path, save: Callable[..., None] = resume.save) -> Record:
    """Run a small cell in this process, with features kept beside its results folder.

    Args:
        save: called when a checkpoint is due.
    """
    results.mkdir(parents=True, exist_ok=True)
    options = ["--methods", method, "--device", device.type, *CELL.split()]
    options += ["--results", str(results), "--data-root", str(results.parent)]
    (cell,), inputs = plan_cells(options)
    return run_cell(cell, inputs.paths, CONTEXT, ignore, save).record


def finished(method: str, device: torch.device, results: Path) -> Record:
    """As `run`.

    Raises:
        RuntimeError: if the cell is not done.
    """
    record = run(method, device, results)
    if not record.done:
        raise RuntimeError(f"{method} is {record.status}: {record.reason}")
    return record


def stopping(run: resume.CellRun, cell: Any, folder: Path, measurements: Any) -> None:
    """Write a checkpoint, and stop as on Ctrl-C."""
    resume.save(run, cell, folder, measurements)
    raise KeyboardInterrupt


def different(a: Record, b: Record) -> int:
    """By how many correct predictions two records differ, summed over tasks and evaluations."""
    return sum(abs(x - y) for x, y in zip(hits(a), hits(b), strict=True))


def hits(record: Record) -> Sequence[int]:
    """The numbers of correct predictions, where a task was evaluated."""
    return [n for row in record.correct or () for n in row if n is not None]


CHECKS: Mapping[str, Make] = {
    "peak memory of a tensor that was freed": memory,
    "the same, after a larger one": memory_of_block,
    "the clock of inference": clock_of_inference,
    "the clock of training": clock_of_training,
    "energy, divided by time": energy,
    "features under bf16, beside fp32": bfloat16,
    "a cell that is resumed": resuming,
    "kept features, computed and read": features,
}
#: Where the host does not wait for the device.
CHECKS_OF_GPU: Mapping[str, Make] = {"a clock that does not wait": clock_without_waiting}
