from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from bench.benchmarks import cifar100
from bench.benchmarks.base import DATA_VARIABLE
from bench.benchmarks.cifar100 import Cifar100, Cifar100Options, read_pickle
from methods.errors import UsageError


class Shell:
    """Its pickle asks for a command to be run."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_official_files_are_read(cifar_root: Path) -> None:
    dataset = Cifar100(Cifar100Options()).open([cifar_root])
    assert (len(dataset.classes), len(dataset.train), len(dataset.test)) == (100, 600, 300)
    assert dataset.classes[7] == "class 07"
    assert (dataset.train.ids[7], dataset.test.ids[299]) == ("train/00007", "test/00299")
    stored = read_pickle(cifar_root / "cifar-100-python" / "test")["data"][4]
    assert np.array_equal(dataset.test.decode(32)[4].transpose(2, 0, 1).ravel(), stored)
    assert dataset.test.labels[4] == 1


def test_a_tampered_file_is_named_and_not_opened(cifar_root: Path, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    (cifar_root / "cifar-100-python" / "test").write_bytes(pickle.dumps(Shell(f"touch {sign}")))
    with pytest.raises(UsageError, match="is not CIFAR-100's file: its md5 is"):
        Cifar100(Cifar100Options()).open([cifar_root])
    assert not sign.exists()


def test_a_missing_file_is_named(cifar_root: Path) -> None:
    (cifar_root / "cifar-100-python" / "meta").unlink()
    with pytest.raises(UsageError, match="meta is missing"):
        Cifar100(Cifar100Options()).open([cifar_root])


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    sign, evil = tmp_path / "sign", tmp_path / "evil"
    evil.write_bytes(pickle.dumps({"data": Shell(f"touch {sign}")}))
    with pytest.raises(UsageError, match=r"asks for \w+\.system"):
        read_pickle(evil)
    assert not sign.exists()


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    """CIFAR's files were written by Python 2: strings are bytes, in protocol 2."""
    path = tmp_path / "meta"
    path.write_bytes(b"\x80\x02}U\x10fine_label_names]U\x05appleas.")
    assert read_pickle(path) == {"fine_label_names": ["apple"]}


def test_an_external_list_moves_images(cifar_root: Path, tmp_path: Path) -> None:
    swapped = [f"train,test/{row:05d}" for row in range(300)] + [
        f"test,train/{row:05d}" for row in range(600)
    ]
    path = tmp_path / "split.csv"
    path.write_text("\n".join(["split,id", *swapped]))
    official = Cifar100(Cifar100Options()).open([cifar_root])
    moved = Cifar100(Cifar100Options(split=path)).open([cifar_root])
    assert (len(moved.train), len(moved.test)) == (300, 600)
    assert np.array_equal(moved.train.decode(32), official.test.decode(32))
    assert moved.sha256 == official.sha256


@pytest.mark.skipif(DATA_VARIABLE not in os.environ, reason=f"{DATA_VARIABLE} is not set")
def test_the_real_files() -> None:
    roots = [Path(os.environ[DATA_VARIABLE])]
    folder = Cifar100(Cifar100Options()).locate(roots)
    if folder is None:
        pytest.skip(f"no CIFAR-100 in {roots[0]}")
    assert set(cifar100.MD5) <= {path.name for path in folder.iterdir()}
    dataset = Cifar100(Cifar100Options()).open(roots)
    assert (dataset.classes[0], dataset.classes[99]) == ("apple", "worm")
    assert np.bincount(dataset.train.labels).tolist() == [500] * 100
    assert np.bincount(dataset.test.labels).tolist() == [100] * 100
