"""The conditions that a cell was run under: versions, machine, hashes, state of the code."""

from __future__ import annotations

import hashlib
import inspect
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import record
from bench.cell.inputs import Inputs
from bench.cell.measurements import Measurements
from bench.cell.one_class import warn_of_one_class, warn_of_zero_loss
from bench.cell.steps import small_batches
from bench.spec import Cell
from methods.errors import UsageError
from methods.hyper import make_hyper
from methods.registry import METHODS

PACKAGES = ("duallora-bench", "torch", "torchvision", "timm", "avalanche-lib", "numpy", "scikit-learn")
CODE = Path(__file__).resolve().parents[2]
#: The code that can change a number; a checkpoint is used only with the code it was made by.
NUMERICAL_CODE = ("bench/cell", "bench/benchmarks", "bench/probes", "methods")


#: The warning where a method whose predictions depend on the batch is tested in batches of one task.
ONE_TASK = (
    "every test batch was of one task (test_batches=task), which tells the task to a method that looks at "
    "batches: the accuracy is not that of class-incremental learning"
)


@dataclass(frozen=True)
class RunContext:
    """How a command runs its cells.

    Attributes:
        command: what the user typed.
        workers: cells at a time; None for as many as the executor has capacity for.
        threads: CPU threads per cell.
    """

    command: str | None
    executor: str
    workers: int | None
    threads: int


def manifest_of(
    cell: Cell, inputs: Inputs, context: RunContext, started: str, measurements: Measurements | None = None
) -> record.Manifest:
    """The manifest of a cell that has just ended.

    Args:
        started: when its first experience began.
        measurements: of a cell that is done.
    """
    commit, dirty = git_state()
    return record.Manifest(
        versions=versions(),
        device=device_name(cell.device),
        threads=context.threads,
        precision=cell.protocol.precision,
        backbone=cell.protocol.backbone,
        backbone_sha256=cell.backbone_sha256,
        data_sha256=_data_sha256(cell, inputs),
        split_sha256=cell.split_sha256,
        commit=commit,
        dirty=dirty,
        started=started,
        ended=now(),
        warnings=_warnings(cell, inputs)
        + warn_of_zero_loss(cell, measurements.zero_loss if measurements else ()),
        command=context.command,
        executor=context.executor,
        workers=context.workers,
        resumed=list(measurements.resumed if measurements else ()),
    )


def _data_sha256(cell: Cell, inputs: Inputs) -> str | None:
    """Of the images that were planned with, which `runner` has compared with those it read."""
    if cell.data_sha256 is not None or cell.split_sha256 is None:
        return cell.data_sha256
    return inputs.data_sha256(cell)


def _warnings(cell: Cell, inputs: Inputs) -> list[str]:
    """Warnings that qualify the results: of the method as it is set, of the images, and of the backbone."""
    method = METHODS[cell.method.name].load()
    hyper = make_hyper(cell.method.name, method.Hyper, cell.method.options)
    of_method = [*method.caveats(hyper), *warn_of_one_class(cell)]
    if method.batch_group(hyper) is not None and cell.protocol.test_batches == "task":
        of_method.append(ONE_TASK)
    if cell.backbone_sha256 is None:
        return of_method
    return [*of_method, *_notes(cell, inputs), *inputs.backbone(cell).warnings(cell.benchmark.name)]


def _notes(cell: Cell, inputs: Inputs) -> tuple[str, ...]:
    """Of the images, and of tasks with few; of a cell that learns they were made when these were decoded."""
    try:
        small = small_batches(cell, inputs)
        return (*inputs.notes(cell), *([small] if small else []))
    except UsageError:  # the reason why the cell failed: its images are not here any more
        return ()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; those not installed are left out."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            by_package[package] = version(package)
    return by_package


def code_sha256(method: type, root: Path = CODE) -> str:
    """Hash of the code that can change a number: `NUMERICAL_CODE`, and the file that defines `method`.

    Args:
        root: the folder of this project's code.
    """
    files = [path for folder in NUMERICAL_CODE for path in sorted((root / folder).rglob("*.py"))]
    total = hashlib.sha256()
    for path in [*files, Path(inspect.getfile(method))]:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def code_conditions(method: type) -> dict[str, str]:
    """The conditions that a trained model depends on, on any machine: the code and the versions."""
    return {"code": code_sha256(method), **versions()}


@cache
def device_name(device: str) -> str:
    """The device kind and what it is: "cuda: NVIDIA H100", "cpu: AMD EPYC"."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "cuda: on another machine"  # in a record without results, written where the command runs
    if device == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {_processor()}"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state() -> tuple[str | None, bool | None]:
    """Commit, and whether tracked files differ from it; (None, None) if the code is not a git checkout."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != CODE:
            return None, None  # installed inside another project's checkout
        return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*args: str) -> str:
    completed = subprocess.run(["git", *args], cwd=CODE, check=True, capture_output=True, text=True)
    return completed.stdout.strip()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
