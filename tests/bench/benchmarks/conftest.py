from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.benchmarks import cifar100
from bench.benchmarks.base import Dataset, Scale
from bench.benchmarks.splits import Split, TestSource, class_order, class_stream, domain_stream, make_split

Folder = Callable[[Path, Mapping[str, int]], Path]


def class_split(
    dataset: Dataset,
    *,
    tasks: int,
    scale: Scale,
    eval_on: TestSource,
    seed: int = 0,
    order: tuple[int, ...] | None = None,
) -> Split:
    """The class-incremental split of a seed, or of a class order."""
    stream = class_stream(dataset, order or class_order(len(dataset.classes), seed), tasks)
    return make_split(dataset, stream, scale=scale, eval_on=eval_on)


def domain_split(
    dataset: Dataset,
    *,
    scale: Scale,
    eval_on: TestSource,
    seed: int = 0,
    order: tuple[int, ...] | None = None,
) -> Split:
    """The domain-incremental split of a seed, or of an order of domains."""
    domains = len(dataset.domains)
    stream = domain_stream(dataset, order or class_order(domains, seed), domains)
    return make_split(dataset, stream, scale=scale, eval_on=eval_on)


class ClosedPixels:
    """Stands for images that must not be read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the test images' {name} was asked for")


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes one small random image."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def class_folders(picture: Callable[..., Path]) -> Folder:
    """Writes a folder of class folders, `counts[name]` images each."""

    def write(folder: Path, counts: Mapping[str, int]) -> Path:
        for name, count in counts.items():
            (folder / name).mkdir(parents=True)
            for number in range(count):
                picture(folder / name / f"{number}.png", seed=hash_of(f"{folder.name}/{name}", number))
        return folder

    return write


@pytest.fixture
def domain_folders(class_folders: Folder) -> Callable[..., Path]:
    """Writes a folder of domains, each with `counts[name]` images of each class."""

    def write(folder: Path, domains: Sequence[str], counts: Mapping[str, int]) -> Path:
        for domain in domains:
            class_folders(folder / domain, counts)
        return folder

    return write


@pytest.fixture
def core50_folder(picture: Callable[..., Path]) -> Folder:
    """Writes the 11 sessions of CORe50, each with `counts[name]` frames of each object."""

    def write(folder: Path, counts: Mapping[str, int]) -> Path:
        for session in range(1, 12):
            for name, count in counts.items():
                for frame in range(count):
                    file = f"C_{session:02d}_{int(name[1:]):02d}_{frame:03d}.png"
                    picture(folder / f"s{session}" / name / file, seed=hash_of(file, frame), size=(4, 4))
        return folder

    return write


def with_lists(folder: Path, target: Path | None = None) -> Path:
    """Writes lists of a folder of domains, into itself or another one, and returns the folder.

    Of each class the first quarter of the images, and one at least, are test images. Classes are numbered
    against the order of their names.
    """
    for domain in sorted(path for path in folder.iterdir() if path.is_dir()):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for label, cls in enumerate(sorted(domain.iterdir(), reverse=True)):
            images = sorted(cls.iterdir())
            for number, image in enumerate(images):
                side = "test" if number < max(len(images) // 4, 1) else "train"
                lines[side].append(f"{image.relative_to(folder).as_posix()} {label}\n")
        for side, of_side in lines.items():
            ((target or folder) / f"{domain.name}_{side}.txt").write_text("".join(of_side))
    return folder


def hash_of(name: str, number: int) -> int:
    return int(hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:8], 16)


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a CIFAR-100 of 6 training and 3 test images per class, in the official format."""
    root = tmp_path / "cifar-root"
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, per_class in (("train", 6), ("test", 3)):
        labels = [label for label in range(100) for _ in range(per_class)]
        data = rng.integers(0, 256, (len(labels), 3072), np.uint8)
        write_pickle(folder / name, {"data": data, "fine_labels": labels, "coarse_labels": labels})
    write_pickle(folder / "meta", {"fine_label_names": [f"class {label:02d}" for label in range(100)]})
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(cifar100, "MD5", md5)
    return root


def write_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=4))
