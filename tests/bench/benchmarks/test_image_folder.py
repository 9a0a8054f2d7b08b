from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.benchmarks.base import Dataset
from bench.benchmarks.image_folder import ImageFolder, ImageFolderOptions, resolve
from bench.benchmarks.imagenet_r import ImageNetR, ImageNetROptions
from methods.errors import MissingError, UsageError

Folder = Callable[..., Path]


def opened(folder: Path, split: Path | None = None) -> Dataset:
    return ImageFolder(ImageFolderOptions(path=folder, split=split)).open([folder.parent / "root"])


def test_a_plain_folder_is_held_out_from(tmp_path: Path, class_folders: Folder) -> None:
    dataset = opened(class_folders(tmp_path / "pets", {"cat": 10, "ant": 5, "bee": 2}))
    assert dataset.classes == ("ant", "bee", "cat")
    assert np.bincount(dataset.test.labels).tolist() == [1, 1, 2]
    assert np.bincount(dataset.train.labels).tolist() == [4, 1, 8]
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    assert all(name.startswith(dataset.classes[label]) for name, label in pairs(dataset))


def pairs(dataset: Dataset) -> list[tuple[str, int]]:
    return [
        *zip(dataset.train.ids, dataset.train.labels, strict=True),
        *zip(dataset.test.ids, dataset.test.labels, strict=True),
    ]


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_that_is_cut_is_taken_as_it_is(name: str, tmp_path: Path, class_folders: Folder) -> None:
    folder = tmp_path / "pets"
    class_folders(folder / "train", {"ant": 3, "bee": 4})
    class_folders(folder / name, {"ant": 2, "bee": 1})
    dataset = opened(folder)
    assert dataset.train.ids[0] == "train/ant/0.png"
    assert dataset.test.ids == (f"{name}/ant/0.png", f"{name}/ant/1.png", f"{name}/bee/0.png")
    assert dataset.test.labels.tolist() == [0, 0, 1]


def test_images_below_a_class_folder_count_and_other_files_do_not(
    tmp_path: Path, class_folders: Folder, picture: Folder
) -> None:
    folder = class_folders(tmp_path / "pets", {"ant": 2, "bee": 2})
    picture(folder / "ant" / "images" / "deep.PNG")
    (folder / "ant" / "boxes.txt").write_text("0 0 1 1")
    (folder / "ant" / "._0.png").write_text("left by macOS")
    picture(folder / "ant" / ".checkpoints" / "0.png")
    picture(folder / ".thumbnails" / "0.png")
    dataset = opened(folder)
    assert sorted(name for name, label in pairs(dataset) if label == 0) == [
        "ant/0.png",
        "ant/1.png",
        "ant/images/deep.PNG",
    ]


def test_training_and_test_folders_with_other_classes_are_refused(
    tmp_path: Path, class_folders: Folder
) -> None:
    class_folders(tmp_path / "pets" / "train", {"ant": 2, "bee": 2, "cat": 1})
    class_folders(tmp_path / "pets" / "val", {"ant": 2, "bee": 2, "dog": 1})
    with pytest.raises(UsageError, match="only in train: cat; only in val: dog"):
        opened(tmp_path / "pets")


def test_empty_class_folders_are_named(tmp_path: Path, class_folders: Folder) -> None:
    with pytest.raises(UsageError, match=r"2 of 3 class folders .* hold no image: bee, cat"):
        opened(class_folders(tmp_path / "pets", {"ant": 2, "bee": 0, "cat": 0}))


@pytest.mark.parametrize("counts", [{}, {"train": 3}])
def test_a_folder_without_classes_is_refused(
    counts: dict[str, int], tmp_path: Path, class_folders: Folder
) -> None:
    (tmp_path / "pets").mkdir()
    with pytest.raises(UsageError, match=f"holds {len(counts)} class folders"):
        opened(class_folders(tmp_path / "pets", counts))


def test_a_class_of_one_image_is_refused(tmp_path: Path, class_folders: Folder) -> None:
    with pytest.raises(UsageError, match=r"class of 'bee/0.png' has one image"):
        opened(class_folders(tmp_path / "pets", {"ant": 2, "bee": 1}))


def test_an_external_list_cuts_a_folder_that_is_cut_already(tmp_path: Path, class_folders: Folder) -> None:
    folder = tmp_path / "pets"
    class_folders(folder / "train", {"ant": 1, "bee": 1})
    class_folders(folder / "test", {"ant": 1, "bee": 1})
    split = tmp_path / "split.csv"
    swapped = {"train": "test", "test": "train"}
    rows = [f"{new},{old}/{name}/0.png" for new, old in swapped.items() for name in ("ant", "bee")]
    split.write_text("\n".join(["split,id", *rows]))
    assert opened(folder, split).train.ids == ("test/ant/0.png", "test/bee/0.png")


def test_images_that_an_external_list_does_not_name_are_counted(
    tmp_path: Path, class_folders: Folder
) -> None:
    split = tmp_path / "split.csv"
    rows = [
        f"{side},{name}/{number}.png"
        for name in ("ant", "bee")
        for number, side in enumerate(("train", "test"))
    ]
    split.write_text("\n".join(["split,id", *rows]))
    dataset = opened(class_folders(tmp_path / "pets", {"ant": 5, "bee": 2}), split)
    assert dataset.notes == ("3 of 7 images are in no row of split.csv, and left out",)


def test_an_external_list_must_cover_all_classes(tmp_path: Path, class_folders: Folder) -> None:
    split = tmp_path / "split.csv"
    split.write_text("split,id\ntrain,ant/0.png\ntest,ant/1.png\n")
    with pytest.raises(UsageError, match="1 of 2 classes have no training image: bee"):
        opened(class_folders(tmp_path / "pets", {"ant": 2, "bee": 2}), split)


def test_path_is_absolute_or_below_here_or_below_a_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, roots = tmp_path / "here", [tmp_path / "one", tmp_path / "two"]
    for folder in (here / "a", roots[0] / "b", roots[1] / "a", roots[1] / "b"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert resolve(Path("a"), roots) == here / "a"
    assert resolve(Path("b"), roots) == roots[0] / "b"
    assert resolve(roots[1] / "a", roots) == roots[1] / "a"
    assert resolve(Path("c"), roots) is None


def test_a_path_that_is_nowhere_names_the_places(tmp_path: Path) -> None:
    benchmark = ImageFolder(ImageFolderOptions(path=Path("nowhere")))
    assert benchmark.locate([tmp_path]) is None
    with pytest.raises(MissingError, match=f"no folder 'nowhere', looked for in .*{tmp_path}"):
        benchmark.open([tmp_path])


def test_the_path_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="image-folder:path=FOLDER"):
        ImageFolder(ImageFolderOptions()).open([tmp_path])


def test_another_imagenet_r_is_opened_only_on_request(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "imagenet-r", {"n01": 5, "n02": 10})
    assert ImageNetR(ImageNetROptions()).locate([tmp_path]) == folder
    with pytest.raises(UsageError, match=r"has 2 classes and 15 images, ImageNet-R has 200 and 30,000"):
        ImageNetR(ImageNetROptions()).open([tmp_path])
    dataset = ImageNetR(ImageNetROptions(allow_subset=True)).open([tmp_path])
    assert (len(dataset.train), len(dataset.test)) == (12, 3)


def test_imagenet_r_elsewhere(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "elsewhere", {"n01": 5, "n02": 5})
    benchmark = ImageNetR(ImageNetROptions(path=folder, allow_subset=True))
    assert benchmark.locate([]) == folder
    assert len(benchmark.open([tmp_path]).classes) == 2
