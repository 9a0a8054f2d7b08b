"""Whole commands: a full-size cell of each method, a grid on every GPU, the tests that need one."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.options import split_list
from bench.record import RECORD_NAME, Record, read
from reports.text import DASH, number
from scripts.common import write_images
from scripts.gpu.checks import MIB, Check
from scripts.perf.end_to_end import passes_counted

#: Test functions that need a GPU have this in their names.
KEYWORD = "on_a_gpu"
TESTS = Path(__file__).parents[2] / "tests"
#: Seconds that a command has to end after it was asked to.
GRACE = 60.0
POLL = 0.1
STDERR = 2
#: Side of the random images, which are enlarged.
STORED = 64
#: Bytes that a process takes on a GPU at least, for its CUDA context.
OCCUPIED = 100 * MIB

#: Runs a Python module with arguments for at most so many seconds, and calls a function again and again.
Command = Callable[[Sequence[str], float, Callable[[], object]], None]


def nothing() -> None:
    """Nothing is watched."""


@dataclass(frozen=True)
class Setting:
    """Full-size cells.

    Attributes:
        methods: names, separated by commas.
        backbone: full timm tag.
        classes, per_class: of the random images, in two tasks.
    """

    methods: str
    backbone: str = "vit_base_patch16_224.augreg_in21k"
    image_size: int = 224
    precision: str = "bf16"
    classes: int = 160
    per_class: int = 6


def command(words: Sequence[str], seconds: float, watch: Callable[[], object]) -> None:
    """Run a Python module in a process of its own, which is ended when its time is up."""
    deadline = time.monotonic() + seconds
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=STDERR)
    while process.poll() is None and time.monotonic() < deadline:
        watch()
        time.sleep(POLL)
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def records_of(results: Path) -> list[Record]:
    """The records below a folder."""
    return [read(path) for path in sorted(results.glob(f"*/{RECORD_NAME}"))]


# ---- full-size cells ------------------------------------------------------------------------------------

HEADER = (
    "method",
    "training (images/s)",
    "forward passes an image",
    "training, peak memory (MiB)",
    "inference (images/s)",
    "x plain ViT",
    "inference, peak memory (MiB)",
)


def full_size(
    setting: Setting, device: torch.device, folder: Path, seconds: float, run: Command = command
) -> dict[str, Record | None]:
    """A cell of each method on random images; None where it was not reached.

    Features are not kept, so that every pass is made.
    """
    write_images(folder / "images", setting.classes, setting.per_class, STORED)
    results = folder / "full-size"
    options = [
        *("--methods", setting.methods, "--benchmarks", f"image-folder:path={folder / 'images'}"),
        *("--backbone", setting.backbone, "--weights", "random", "--image-size", str(setting.image_size)),
        *("--precision", setting.precision, "--device", device.type, "--scale", "smoke", "--tasks", "2"),
        *("--seeds", "0", "--no-feature-cache", "--data-root", str(folder), "--results", str(results)),
    ]
    run(["bench", "run", *options], seconds, nothing)
    records = {record.method: record for record in records_of(results)}
    return {name: records.get(name) for name in split_list(setting.methods)}


def row(method: str, record: Record | None) -> list[str]:
    """The measurements of a cell, by `HEADER`; of one without results, why there are none."""
    if record is None or record.cost is None or not record.done:
        reason = f"{record.status}: {record.reason}" if record else "not reached in the time there is"
        return [f"{method} ({reason})", *[DASH] * (len(HEADER) - 1)]
    cost, peaks = record.cost, record.cost.peak_memory
    batch = max((latency.batch for latency in cost.latency or ()), default=0)
    latency = cost.last_latency(batch)
    return [
        method,
        shown(images_per_second(record), 0),
        shown(passes_counted(record, kept=True), 2),
        shown(peaks.training.above / MIB if peaks and peaks.training else None, 0),
        shown(cost.throughput, 0),
        shown(latency.ratio if latency else None, 2),
        shown(peaks.inference.above / MIB if peaks and peaks.inference else None, 0),
    ]


def shown(value: float | None, digits: int) -> str:
    """A number, or a dash for what was not measured."""
    return DASH if value is None else number(value, digits)


def images_per_second(record: Record) -> float | None:
    """Images of the last task's steps over its seconds; of a method without steps, images it passed."""
    assert record.cost is not None
    last = record.cost.experiences[-1]
    images = last.train_images or last.forward_images
    return images / last.train_seconds if images and last.train_seconds else None


# ---- a grid on every GPU --------------------------------------------------------------------------------


def free_memory() -> list[int]:
    """Bytes of free memory of each GPU."""
    return [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]


def every_gpu(
    device: torch.device,
    folder: Path,
    seconds: float,
    run: Command = command,
    free: Callable[[], Sequence[int]] = free_memory,
) -> Check:
    """Two cells for each GPU under `--executor processes`; each GPU has less free memory meanwhile.

    Args:
        free: bytes of free memory of each GPU.
    """
    before = list(free())
    least, count, results = list(before), 2 * max(1, len(before)), folder / "processes"
    options = [
        *("--methods", "finetune", "--scale", "smoke", "--seeds", ",".join(map(str, range(count)))),
        *("--executor", "processes", "--device", device.type),
        *("--data-root", str(folder), "--results", str(results)),
    ]

    def watch() -> None:
        least[:] = map(min, least, free())

    run(["bench", "run", *options], seconds, watch)
    done = sum(record.done for record in records_of(results))
    return on_every_gpu(count, done, before, least)


def on_every_gpu(count: int, done: int, before: Sequence[int], least: Sequence[int]) -> Check:
    """Whether so many cells are done, and each GPU was used.

    Args:
        before: bytes of free memory of each GPU, before the cells were run.
        least: the least there were meanwhile.
    """
    gpus, used = len(before), sum(b - a >= OCCUPIED for a, b in zip(least, before, strict=True))
    return Check(
        f"{count} cells done, on {gpus} of {gpus} GPUs",
        f"{done} cells done, on {used} of {gpus} GPUs",
        done == count and used == gpus,
    )


# ---- the tests that need a GPU --------------------------------------------------------------------------


def waiting_tests(folder: Path, seconds: float, run: Command = command) -> Check:
    """The tests whose names say that they need a GPU; at least one has to pass, and none to be skipped."""
    file = folder / "tests.xml"
    run(["pytest", str(TESTS), "-k", KEYWORD, "--junitxml", str(file)], seconds, nothing)
    outcomes = Counter(outcomes_in(file.read_text()) if file.exists() else [])
    found = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items())) or "none ran"
    return Check("all passed", found, set(outcomes) == {"passed"})


def outcomes_in(xml: str) -> Iterator[str]:
    """Of each test in a file as pytest writes it for JUnit: passed, failed, skipped, or broken."""
    names = {"failure": "failed", "error": "broken", "skipped": "skipped"}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        yield next((names[part.tag] for part in case if part.tag in names), "passed")
