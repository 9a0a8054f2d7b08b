from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from bench.benchmarks.base import DATA_VARIABLE, Dataset, ImageSet, Scale, data_roots
from bench.benchmarks.pixels import ArrayPixels
from methods.errors import UsageError, abbreviate


def image_set(ids: tuple[str, ...], labels: list[int], shade: int = 0) -> ImageSet:
    return ImageSet(ids, np.array(labels), ArrayPixels(np.full((len(ids), 2, 2, 3), shade, np.uint8)))


def test_roots_are_searched_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))
    cache = tmp_path / "home/.cache/duallora-bench"
    assert data_roots(tmp_path / "asked") == (tmp_path / "asked", tmp_path / "variable", cache)
    assert data_roots(None) == (tmp_path / "variable", cache)
    assert data_roots(tmp_path / "variable") == (tmp_path / "variable", cache)
    monkeypatch.delenv(DATA_VARIABLE)
    assert data_roots(None) == (cache,)


@pytest.mark.parametrize("field", ["train_per_class", "test_per_class", "epochs", "batch_size"])
def test_scale_must_be_positive(field: str) -> None:
    good = {"train_per_class": None, "test_per_class": None, "epochs": 1, "batch_size": 1}
    with pytest.raises(ValidationError, match=field):
        Scale(**(good | {field: 0}))  # type: ignore[arg-type]


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="two images are named 'b'"):
        image_set(("a", "b", "b"), [0, 0, 1])


def test_names_and_labels_must_belong_together() -> None:
    with pytest.raises(UsageError, match="2 image names, 1 labels"):
        image_set(("a", "b"), [0])


def test_data_hash_covers_content_names_and_classes_but_not_the_cut() -> None:
    def sha(train: ImageSet, test: ImageSet, classes: tuple[str, ...] = ("x", "y")) -> str:
        return Dataset(classes, train, test).sha256

    train, test = image_set(("a", "b"), [0, 1]), image_set(("c", "d"), [0, 1])
    assert sha(train, test) == sha(test, train)
    assert sha(train, test) != sha(image_set(("a", "b"), [0, 1], shade=1), test)
    assert sha(train, test) != sha(image_set(("a", "e"), [0, 1]), test)
    assert sha(train, test) != sha(image_set(("a", "b"), [1, 0]), test)
    assert sha(train, test) != sha(train, test, classes=("x", "z"))


def test_long_lists_are_cut_in_messages() -> None:
    assert abbreviate(["a", "b", "c"], 2) == "a, b and 1 more"
    assert abbreviate(["a", "b"], 2) == "a, b"


def test_listing_imports_nothing_heavy() -> None:
    """In another process: this one has imported everything already."""
    code = (
        "import sys; from pathlib import Path; from bench.benchmarks import BENCHMARKS\n"
        "for name in BENCHMARKS:\n"
        "    cls = BENCHMARKS[name].load(); cls(cls.Options()).locate([Path('nowhere')])\n"
        "print(sorted({'numpy', 'torch', 'PIL', 'sklearn', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
