"""The conditions a cell was run under: versions, machine, hashes, the state of the code."""

from __future__ import annotations

import hashlib
import inspect
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import record
from bench.plan import Places, find_backbone, open_source
from bench.spec import Cell
from methods.hyper import make_hyper
from methods.registry import METHODS

PACKAGES = ("duallora-bench", "torch", "torchvision", "timm", "avalanche-lib", "numpy", "scikit-learn")
CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Circumstances:
    """How a command runs its cells: what the user typed, the executor, how many cells at a time.

    `workers` is None where the executor decides that itself; `threads` are those of each cell.
    """

    command: str | None
    executor: str
    workers: int | None
    threads: int


def manifest_of(
    cell: Cell, places: Places, how: Circumstances, started: str, resumed: Sequence[int] = ()
) -> record.Manifest:
    """The manifest of a cell that has just ended.

    Args:
        started: when its first experience began.
        resumed: how many experiences were over whenever it was taken up again.
    """
    commit, dirty = git_state()
    return record.Manifest(
        versions=versions(),
        device=device_name(cell.device),
        threads=how.threads,
        precision=cell.protocol.precision,
        backbone=cell.protocol.backbone,
        backbone_sha256=cell.backbone_sha256,
        data_sha256=_data_sha256(cell, places),
        split_sha256=cell.split_sha256,
        commit=commit,
        dirty=dirty,
        started=started,
        ended=now(),
        warnings=_warnings(cell, places),
        command=how.command,
        executor=how.executor,
        workers=how.workers,
        resumed=list(resumed),
    )


def _data_sha256(cell: Cell, places: Places) -> str | None:
    if cell.split_sha256 is None:
        return None
    source = open_source(cell.benchmark.name, cell.benchmark.frozen_options, places.roots)
    return source.sha256 if cell.eval_on == "test" else source.train_sha256


def _warnings(cell: Cell, places: Places) -> list[str]:
    """What must be known before the numbers are believed: of the method as it is set, of the backbone."""
    method = METHODS[cell.method.name].load()
    of_method = method.caveats(make_hyper(cell.method.name, method.Hyper, cell.method.options))
    if cell.backbone_sha256 is None:
        return list(of_method)
    found = find_backbone(cell.protocol.backbone, places.weights, places.roots)
    return [*of_method, *found.warnings(cell.benchmark.name)]


def versions() -> dict[str, str]:
    """Of Python and of every package that has a part in a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def code_sha256(method: type) -> str:
    """Hash of this project's code, and of the file that defines `method`, wherever that is."""
    own = [path for room in ("bench", "methods") for path in sorted((CODE / room).rglob("*.py"))]
    total = hashlib.sha256()
    for path in [*own, Path(inspect.getfile(method))]:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@cache
def device_name(device: str) -> str:
    """The device kind and what it is: "cuda: NVIDIA H100", "cpu: AMD EPYC"."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return (
            "cuda: on another machine"  # a record without results, written by who started the cluster's work
        )
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
    """Commit, and whether tracked files differ from it; nulls where the code is no git checkout."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != CODE:
            return None, None  # installed somewhere inside another project's checkout
        return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=CODE, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
