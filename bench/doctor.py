"""What this machine can run, what is missing, and how to get it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.benchmarks.base import DECODED, data_roots
from bench.cell.backbone import (
    DEFAULT_BACKBONE,
    MICRO_NAME,
    MICRO_WEIGHTS,
    local_weights,
    micro_card,
    sha256_of,
)
from bench.cell.inputs import FEATURES
from bench.cell.manifest import PACKAGES, device_name, git_state
from bench.cores import allowed, cores, cpu_quota
from bench.listing import listing
from bench.storage import expanded, is_writable_folder, nearest_existing


def examine() -> Iterator[str]:
    """What there is and what is missing, in lines."""
    yield from _software()
    yield from _home()
    yield from _hardware()
    yield from _probes()
    yield from _weights()
    yield from _data()


def _software() -> Iterator[str]:
    yield f"python {platform.python_version()}"
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} is MISSING; install this project with: pip install -e ."
    yield _ray()
    commit, dirty = git_state()
    state = (
        "not a git checkout" if commit is None else f"commit {commit[:12]}{', with changes' if dirty else ''}"
    )
    yield f"code: {state}"


def _ray() -> str:
    try:
        return f"ray {version('ray')}: --executor ray"
    except PackageNotFoundError:
        return "ray is not installed; --executor ray needs it: pip install 'duallora-bench[ray]'"


def _home() -> Iterator[str]:
    """Nothing where there is a home folder to write to, as there usually is."""
    home = expanded(Path("~"))
    if not home.is_absolute():
        yield (
            "home: this user has none (HOME is not set, and the system does not know the user); downloads go "
            f"to {data_roots(None)[-1]}; give --data-root or DUALLORA_BENCH_DATA, and HF_HOME for weights"
        )
    elif not is_writable_folder(nearest_existing(home)):
        yield (
            f"home: {home} cannot be written to; runs work, with temporary settings of Avalanche and "
            "matplotlib; give --data-root or DUALLORA_BENCH_DATA for downloads, HF_HOME for weights, "
            "MPLCONFIGDIR for figures"
        )


def _hardware() -> Iterator[str]:
    import torch

    yield f"{device_name('cpu')}, {_cores()}, threads of a cell: {min(torch.get_num_threads(), cores())}"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield f"{device_name('cuda')}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    else:
        yield "no CUDA device: runs are on the CPU; see digits, or --scale quick with a ViT-Tiny"


def _cores() -> str:
    quota = cpu_quota()
    limit = "" if quota is None else f" (a quota of {quota:g} CPUs; {allowed()} without it)"
    return f"cores: {cores()}{limit}"


def _probes() -> Iterator[str]:
    import torch

    from bench.probes.energy import counter_of
    from bench.probes.memory import meter_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meter = meter_of(device)
    absent = "not measured here, because this system does not reset the peak of a process"
    yield f"peak memory: {f'measured as {meter.kind}' if meter else absent}"
    yield f"energy of training: {'counted by NVML' if counter_of(device) else 'not counted on this device'}"


def _weights() -> Iterator[str]:
    intact = sha256_of(MICRO_WEIGHTS) == micro_card()["sha256"]
    yield f"backbone {MICRO_NAME}: packaged, {'intact' if intact else 'DAMAGED: reinstall this project'}"
    for root in data_roots(None):
        for path in sorted((root / "weights").glob("*.safetensors")):
            yield f"weights file {path}: use it with --weights and the matching --backbone"
    weights = local_weights(DEFAULT_BACKBONE, None, data_roots(None))
    missing = "not on this machine; the first run that needs it downloads it where a network exists"
    yield f"backbone {DEFAULT_BACKBONE}: {weights or missing}"


def _data() -> Iterator[str]:
    yield f"data are searched for in: {', '.join(map(str, data_roots(None)))}"
    for root in data_roots(None):
        if (root / DECODED).is_dir():
            yield _kept(root / DECODED, "decoded images", "decoded")
        if (root / FEATURES).is_dir():
            yield _kept(root / FEATURES, "features of frozen backbones", "computed")
    for item in listing():
        if item.kind == "benchmark":
            yield f"benchmark {item.name}: {item.data}"


def _kept(folder: Path, what: str, made: str) -> str:
    try:
        sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        return f"{what}: {folder} cannot be listed ({error.strerror})"
    size = f"{sum(sizes) / 2**20:,.1f} MiB in {len(sizes)} files"
    return f"{what}: {size}; to empty it, delete the folder {folder} (what is needed is {made} again)"
