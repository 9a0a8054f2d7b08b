"""Features of the frozen backbone: computed once, kept on disk, read by every cell that needs them.

The features of an image are what the classifier of the backbone as it was loaded reads, before any method
adapts it. An image that is not cropped at random has one or two inputs, itself and its mirror image, so that
its features need not be computed again in every epoch, evaluation, method and seed.

One file holds the features of a set of images. It is named by a hash of everything that they depend on
(`file_key`), and holds a hash of its content, which is verified when it is read: a file of other images,
other weights or another program is never read, and a damaged one is computed again. The folder may be
deleted at any time. Features are always computed in the same batches, so that those that were read equal
those that were computed, bit for bit, on the same machine with the same number of threads.

Nothing here is used where latency, memory of inference or operations are measured.

Shapes: n images, S side as stored, D width of the features.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from bench.benchmarks.drafts import write_whole
from bench.cell.batches import Pipeline
from bench.cell.placement import images_per_pass, on_device
from bench.cell.precision import autocast
from bench.cell.progress import Notice, Observer, ProgressUpdate
from methods.vit import embed

DRAFT = ".keeping-"  # how the name of a file begins while it is written
#: Images per pass, at most. Part of the key: the last bits of a feature depend on it.
BATCH = 64
#: Bytes that the files of a folder may take in all; the files used longest ago are deleted first.
MAX_BYTES = 8 * 2**30
LOCK_SECONDS = 5.0

Part = Literal["train", "test"]
#: Which images, and whether each is mirrored.
Inputs = tuple[Part, bool]


@dataclass(frozen=True)
class Conditions:
    """What the features of given images depend on.

    Attributes:
        model: what the backbone is built from.
        inputs: how images become the model's input.
        precision: "fp32" or "bf16".
        machine: the device, the number of threads.
        code: hashes and versions of the program and its libraries.
    """

    model: Mapping[str, Any]
    inputs: Mapping[str, Any]
    precision: str
    machine: Mapping[str, str]
    code: Mapping[str, str]


@dataclass(frozen=True)
class Features:
    """The features of a cell's images, on its device if they fit there.

    Attributes:
        tensors: (n, D), float32, by part and whether the images are mirrored; those that were asked for.
        passes: images that were passed through the backbone to compute them; the others were read.
        seconds: that this took, reading included.
    """

    tensors: Mapping[Inputs, Tensor]
    passes: int
    seconds: float

    def of(self, part: Part, rows: Tensor, mirrored: Tensor) -> Tensor | None:
        """The features (B, D) of images; None if they are not kept.

        Args:
            rows: (B,) positions among the images of the part.
            mirrored: (B,) bool.
        """
        plain, mirror = self.tensors.get((part, False)), self.tensors.get((part, True))
        if plain is None or (mirror is None and bool(mirrored.any())):
            return None
        features = _rows_of(plain, rows)
        if mirror is None:
            return features
        return torch.where(mirrored[:, None], _rows_of(mirror, rows), features)


def _rows_of(features: Tensor, rows: Tensor) -> Tensor:
    """The rows (B,), which are on the device of the model, of features that are there if they fit."""
    return features[rows.to(features.device)].to(rows.device)


def file_key(images: Any, mirrored: bool, conditions: Conditions) -> str:
    """The name of the file with the features of uint8 images (n, S, S, 3)."""
    content = hashlib.sha256(memoryview(images).cast("B")).hexdigest()
    described = {
        "images": content,
        "shape": list(images.shape),
        "mirrored": mirrored,
        "batch": BATCH,
        **asdict(conditions),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def read_or_compute(path: Path, compute: Callable[[], Tensor], observe: Observer) -> tuple[Tensor, bool]:
    """The features in a file, or computed and written there; and whether they were computed.

    Of several processes that need the same file one computes it, and the others wait. Where the file cannot
    be written, the features are computed all the same, and a sentence says so.
    """
    with _locked(path, observe):
        features = read(path, observe)
        if features is not None:
            return features, False
        features = compute()
        try:
            write(path, features)
            evict(path.parent, MAX_BYTES, keep=path)
        except OSError as error:
            observe(Notice(f"features are not kept, and the next cell computes them again: {error}"))
        return features, True


def read(path: Path, observe: Observer) -> Tensor | None:
    """The features in a file; None if there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            expected = (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        expected, features = None, torch.empty(0)
    if expected is None or expected != _sha256(features):
        observe(Notice(f"the file of features '{path}' is damaged; they are computed again"))
        return None
    _mark_used(path)
    return features


def write(path: Path, features: Tensor) -> None:
    """Write features (n, D) to a file, completely or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    content = to_bytes({"features": features}, metadata={"sha256": _sha256(features)})
    write_whole(path, DRAFT, lambda file: file.write(content))


def evict(folder: Path, max_bytes: int, keep: Path) -> None:
    """Delete the files used longest ago until the others take at most `max_bytes`; never `keep`."""
    files = sorted(_files(folder), key=lambda entry: entry[1].st_mtime_ns, reverse=True)
    total = 0
    for path, stat in files:
        total += stat.st_size
        if total > max_bytes and path != keep:
            path.unlink(missing_ok=True)


def wanted_inputs(asks_for: str, augmentation: str) -> list[Inputs]:
    """The images, plain or mirrored, whose features a method reads, and that can be kept.

    Args:
        asks_for: see `methods.base.Method.asks_for`.
        augmentation: of the training images. Random crops cannot be kept.
    """
    if asks_for == "none":
        return []
    test: list[Inputs] = [("test", False)]
    if asks_for == "clean" or augmentation == "none":
        return [("train", False), *test]
    mirrored: list[Inputs] = [("train", False), ("train", True)]
    return [*mirrored, *test] if augmentation == "flip" else test


def prepare(
    wanted: Sequence[Inputs],
    images: Mapping[Part, Any],
    build_model: Callable[[], torch.nn.Module],
    pipeline: Pipeline,
    conditions: Conditions,
    folder: Path,
    observe: Observer,
) -> Features:
    """Read or compute the features that a cell needs.

    Args:
        wanted: of which part, mirrored or not.
        images: uint8 (n, S, S, 3) arrays by part.
        build_model: makes the backbone, in eval mode on the pipeline's device; called where it is needed.
        folder: where files are kept.
    """
    started, passes, tensors, model = time.perf_counter(), 0, {}, cache(build_model)

    def compute_features(part: Part, mirrored: bool, progress: Callable[[float], None]) -> Tensor:
        pixels = torch.from_numpy(images[part])
        return compute(model(), pixels, mirrored, pipeline, conditions.precision, progress)

    for i, (part, mirrored) in enumerate(wanted, start=1):
        path = folder / f"{file_key(images[part], mirrored, conditions)}.safetensors"
        progress = partial(_report, observe, i, len(wanted))
        features, computed = read_or_compute(
            path, partial(compute_features, part, mirrored, progress), observe
        )
        passes += computed * len(features)
        tensors[part, mirrored] = on_device(features, pipeline.device)
    return Features(tensors, passes, time.perf_counter() - started)


def _report(observe: Observer, number: int, count: int, share: float) -> None:
    observe(ProgressUpdate("computing features", number, count, share=share, steps="part"))


def compute(
    model: torch.nn.Module,
    images: Tensor,
    mirrored: bool,
    pipeline: Pipeline,
    precision: str,
    observe: Callable[[float], None],
) -> Tensor:
    """The features (n, D), float32, on the CPU, of uint8 images (n, S, S, 3).

    Args:
        observe: called with the finished share.
    """
    batches, size = [], images_per_pass(model, pipeline.device, BATCH)
    with torch.no_grad():
        for start in range(0, len(images), size):
            x = pipeline.view(images[start : start + size].to(pipeline.device))
            x = pipeline.normalise(x.flip(3) if mirrored else x)
            with autocast(pipeline.device, precision):
                batches.append(embed(model, x).float().cpu())
            observe(min(start + size, len(images)) / len(images))
    return torch.cat(batches)


@contextmanager
def _locked(path: Path, observe: Observer) -> Iterator[None]:
    """Hold the lock of a file; where there can be none, go on without it."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            observe(Notice("it waits for features that another process computes"))
            lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().tobytes()).hexdigest()


def _mark_used(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        return  # a folder that cannot be written to is not evicted from, either


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob("*.safetensors"):
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:  # deleted meanwhile
            continue
    return found
