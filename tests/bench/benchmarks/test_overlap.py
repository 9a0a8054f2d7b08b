"""Equal images on both sides of a split, or in several classes, are told with their number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.benchmarks import BENCHMARKS
from bench.benchmarks.base import Dataset
from bench.benchmarks.image_folder import ImageFolder, ImageFolderOptions
from bench.benchmarks.overlap import warnings
from bench.benchmarks.splits import TestSource
from tests.bench.benchmarks.conftest import class_split

Folder = Callable[..., Path]


def told(folder: Path, eval_on: TestSource = "test", scale: str = "full") -> tuple[str, ...]:
    benchmark = ImageFolder(ImageFolderOptions(path=folder))
    dataset = benchmark.open([folder.parent / "root"])
    return of(dataset, eval_on, benchmark.scales[scale])


def of(dataset: Dataset, eval_on: TestSource, scale: object) -> tuple[str, ...]:
    return warnings(dataset, class_split(dataset, tasks=2, seed=0, scale=scale, eval_on=eval_on))  # type: ignore[arg-type]


def test_images_of_the_test_set_that_are_trained_on_are_counted(
    tmp_path: Path, class_folders: Folder
) -> None:
    class_folders(tmp_path / "pets" / "train", {"ant": 3, "bee": 2})
    shutil.copytree(tmp_path / "pets" / "train", tmp_path / "pets" / "test")
    (sentence,) = told(tmp_path / "pets")
    assert sentence.startswith("5 of 5 test images are trained on, too")
    assert sentence.endswith("accuracies may be too high by 100.0 points")
    assert "'test/ant/0.png' and 'train/ant/0.png'" in sentence
    (sentence,) = told(tmp_path / "pets", scale="smoke")
    assert sentence.startswith("4 of 4 test images")


def test_copies_with_another_label_are_counted(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", {"ant": 6, "bee": 6, "cat": 6})
    shutil.copy(folder / "ant" / "0.png", folder / "bee" / "copy.png")
    sentence = told(folder)[-1]
    assert sentence.startswith("2 of 19 images have a copy in another class")
    assert "such as ant and bee; not both can be right" in sentence


def test_on_validation_the_held_out_images_are_compared_and_not_the_test_images(
    tmp_path: Path, class_folders: Folder
) -> None:
    folder = class_folders(tmp_path / "pets" / "train", {"ant": 3, "bee": 3}).parent
    class_folders(folder / "test", {"ant": 1, "bee": 1})
    for name in ("ant", "bee"):
        for number in range(3):  # whichever is held out, its copy is trained on
            shutil.copy(folder / "train" / name / f"{number}.png", folder / "train" / name / f"c{number}.png")
    shutil.copy(folder / "train" / "ant" / "0.png", folder / "test" / "ant" / "0.png")
    (sentence,) = told(folder, eval_on="validation")
    assert sentence.startswith("2 of 2 test images are trained on, too")


def test_different_images_are_not_told(tmp_path: Path, class_folders: Folder) -> None:
    assert told(class_folders(tmp_path / "pets", {"ant": 6, "bee": 6})) == ()


@pytest.mark.parametrize("eval_on", ["test", "validation"])
def test_the_digits_are_all_different(eval_on: TestSource) -> None:
    cls = BENCHMARKS["digits"].load()
    benchmark = cls(cls.Options())
    assert of(benchmark.open([]), eval_on, benchmark.scales["full"]) == ()
