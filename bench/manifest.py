"""The conditions a cell was run under: versions, machine, hashes, the state of the code."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
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


def manifest_of(cell: Cell, places: Places, command: str | None, started: str) -> record.Manifest:
    """The manifest of a cell that has just ended; `command` is what the user typed."""
    import torch

    commit, dirty = git_state()
    return record.Manifest(
        versions={"python": platform.python_version()} | _versions(),
        device=device_name(cell.device),
        threads=torch.get_num_threads(),
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
        command=command,
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


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def device_name(device: str) -> str:
    """The device kind and what it is: "cuda: NVIDIA H100", "cpu: AMD EPYC"."""
    import torch

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
