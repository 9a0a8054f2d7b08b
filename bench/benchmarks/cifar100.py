"""CIFAR-100: 60,000 images of 32x32 pixels, 100 classes, 500 training and 100 test images each.

The files are torchvision's (`cifar-100-python/{train,test,meta}`), with torchvision's checksums.
Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from bench.benchmarks import STRICT, register
from bench.benchmarks.base import Benchmark, Dataset, ImageSet, Scale, make_scales
from bench.benchmarks.download import Archive, find_folder, md5_of, obtain
from bench.benchmarks.pixels import ArrayPixels
from bench.benchmarks.splits import split_by_rows, split_from_csv, unlisted
from methods.errors import UsageError

ARCHIVE = Archive(
    what="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
)
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


@dataclass(frozen=True, config=STRICT)
class Cifar100Options:
    """Options of `--benchmarks cifar100:...`."""

    split: Path | None = Field(None, description="CSV file 'split,id' that replaces the official split")


@register("cifar100")
class Cifar100(Benchmark[Cifar100Options]):
    """Images stay 32x32 and are enlarged by batch, on the model's device. Ids: "train/00123"."""

    pinned = True
    default_tasks = 10
    image_size = 224
    scales = make_scales(
        smoke=Scale(train_per_class=4, test_per_class=2, epochs=1, batch_size=32),
        quick=Scale(train_per_class=50, test_per_class=20, epochs=4, batch_size=16),
        full=Scale(train_per_class=None, test_per_class=None, epochs=20, batch_size=128),
    )
    Options = Cifar100Options

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The folder or, before it is unpacked, the archive."""
        return find_folder(ARCHIVE, roots)

    def open(self, roots: Sequence[Path]) -> Dataset:
        import numpy as np

        folder = obtain(ARCHIVE, roots)
        for name in MD5:
            _check(folder / name)
        train, test = _read(folder, "train"), _read(folder, "test")
        pool = ImageSet(
            train.ids + test.ids,
            np.concatenate([train.labels, test.labels]),
            ArrayPixels(np.concatenate([train.decode(32), test.decode(32)])),
        )
        classes, split = tuple(read_pickle(folder / "meta")["fine_label_names"]), self.options.split
        if split is None:
            official = np.arange(len(train)), np.arange(len(train), len(pool))
            return split_by_rows(classes, pool, official)
        rows = split_from_csv(pool.ids, split)
        return split_by_rows(classes, pool, rows, unlisted(pool.ids, rows, split))


def _check(path: Path) -> None:
    if not path.is_file():
        raise UsageError(
            f"{path} is missing; remove the folder {path.parent} and CIFAR-100 is unpacked again"
        )
    if (md5 := md5_of(path)) != MD5[path.name]:
        raise UsageError(
            f"{path} is not CIFAR-100's file: its md5 is {md5}, not {MD5[path.name]}; remove the folder "
            f"{path.parent} and it is unpacked again"
        )


def _read(folder: Path, name: str) -> ImageSet:
    import numpy as np

    content = read_pickle(folder / name)
    labels = np.array(content["fine_labels"], np.int64)
    images = content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    ids = tuple(f"{name}/{row:05d}" for row in range(len(labels)))
    return ImageSet(ids, labels, ArrayPixels(np.ascontiguousarray(images)))


def read_pickle(path: Path) -> Mapping[str, Any]:
    """The content of one of CIFAR's files; only arrays and plain values are constructed.

    Raises:
        UsageError: if the file asks for anything else.
    """
    with path.open("rb") as file:
        try:
            content: Mapping[str, Any] = _ArraysOnly(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise UsageError(f"{path} is not read: {error}") from error
    return content


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that calls nothing but three functions of numpy, whatever the pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        rebuild = np.empty(0).__reduce__()[0]  # its module has moved between numpy's versions
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of CIFAR-100")
        return allowed[module, name]
