"""Which files of a folder are images of which side and class; each of the others is accounted for."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.benchmarks.base import Dataset
from bench.benchmarks.image_folder import ImageFolder, ImageFolderOptions
from methods.errors import UsageError

Folder = Callable[..., Path]
TWO = {"ant": 3, "bee": 2}


def opened(folder: Path) -> Dataset:
    return ImageFolder(ImageFolderOptions(path=folder)).open([folder.parent / "root"])


# ---- sides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("Train", "Test"), ("TRAIN", "VAL"), ("train", "valid"), ("training", "validation")),
        *(("Training", "Testing"), ("train", "eval"), ("train", "dev"), ("train", "Evaluation")),
    ],
)
def test_the_usual_names_of_sides_are_understood_in_any_case(
    train: str, test: str, tmp_path: Path, class_folders: Folder
) -> None:
    class_folders(tmp_path / "pets" / train, TWO)
    class_folders(tmp_path / "pets" / test, {"ant": 1, "bee": 1})
    dataset = opened(tmp_path / "pets")
    assert dataset.classes == ("ant", "bee")
    assert [len(dataset.train), len(dataset.test)] == [5, 2]
    assert {name.partition("/")[0] for name in dataset.test.ids} == {test}
    assert dataset.notes == ()


def test_a_third_side_is_left_out_with_a_word(tmp_path: Path, class_folders: Folder) -> None:
    for side in ("train", "val", "test"):
        class_folders(tmp_path / "pets" / side, TWO)
    dataset = opened(tmp_path / "pets")
    assert {name.partition("/")[0] for name in dataset.test.ids} == {"test"}
    assert dataset.notes == ("10 images are used; left out: 5 in a third side (val 5)",)


@pytest.mark.parametrize(
    "sides",
    [
        *(("train_images", "test_images"), ("train2017", "val2017"), ("Training Set", "Test Set")),
        *(("test", "val"), ("train", "unlabeled"), ("images-train", "images-val"), ("train", "testset1")),
    ],
)
def test_folders_that_look_like_sides_and_are_not_understood_are_named(
    sides: tuple[str, str], tmp_path: Path, class_folders: Folder
) -> None:
    for side in sides:
        class_folders(tmp_path / "pets" / side, TWO)
    with pytest.raises(UsageError, match="look like the sides") as caught:
        opened(tmp_path / "pets")
    for side in sides:
        assert f"{side}/" in str(caught.value)


@pytest.mark.parametrize(
    "names", [("Train", "train", "test"), ("train", "test", "eval"), ("train", "val", "dev")]
)
def test_two_folders_for_one_side_are_refused(
    names: tuple[str, ...], tmp_path: Path, class_folders: Folder
) -> None:
    for name in names:
        class_folders(tmp_path / "pets" / name, TWO)
    with pytest.raises(UsageError, match=r"has several .* sides: "):
        opened(tmp_path / "pets")


def test_images_beside_the_sides_are_refused_and_other_files_counted(
    tmp_path: Path, class_folders: Folder, picture: Folder
) -> None:
    for side in ("train", "test"):
        class_folders(tmp_path / "pets" / side, TWO)
    (tmp_path / "pets" / "docs").mkdir()
    (tmp_path / "pets" / "docs" / "licence.txt").write_text("free")
    assert "1 beside the sides (docs 1)" in opened(tmp_path / "pets").notes[0]
    picture(tmp_path / "pets" / "extra" / "0.png")
    with pytest.raises(UsageError, match=r"holds images in extra/ beside the sides test/, train/"):
        opened(tmp_path / "pets")


def test_a_class_may_be_called_like_a_side(tmp_path: Path, class_folders: Folder) -> None:
    dataset = opened(class_folders(tmp_path / "vehicles", {"car": 2, "train": 2, "test tube": 2}))
    assert dataset.classes == ("car", "test tube", "train")


# ---- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jfif", ".avif", ".JPE", ".webp", ".tga"])
def test_images_of_every_usual_ending_are_used(suffix: str, tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", TWO)
    path = folder / "bee" / f"other{suffix}"
    formats = {".jfif": "JPEG", ".JPE": "JPEG", ".avif": "AVIF", ".webp": "WEBP", ".tga": "TGA"}
    Image.fromarray(np.full((9, 9, 3), 70, np.uint8)).save(path, formats[suffix])
    dataset = opened(folder)
    assert f"bee/other{suffix}" in {*dataset.train.ids, *dataset.test.ids}
    assert dataset.train.decode(8).shape == (len(dataset.train), 8, 8, 3)


def test_every_file_is_accounted_for(tmp_path: Path, class_folders: Folder, picture: Folder) -> None:
    folder = class_folders(tmp_path / "pets", TWO)
    for name in ("0.png", "1.png"):
        picture(folder / "ant" / "@eaDir" / name / "SYNOPHOTO_THUMB_M.jpg")
        picture(folder / "ant" / f"._{name}")
    picture(folder / "__MACOSX" / "ant" / "0.png")
    picture(folder / ".thumbnails" / "0.png")
    picture(folder / "cover.png")
    for name in ("bee/Thumbs.db", "bee/0.txt", "bee/1.txt", "bee/0.heic", "bee/README", "README.md"):
        (folder / name).write_bytes(b"none")
    (note,) = opened(folder).notes
    assert note.startswith("5 images are used; left out: ")
    for words in (
        "4 made by a system (@eaDir 2, Thumbs.db 1, __MACOSX 1)",
        "4 not named like images (.txt 2, .heic 1, no ending 1)",
        "3 hidden",
        "2 beside the class folders",
    ):
        assert words in note


def test_linked_folders_and_files_are_followed(tmp_path: Path, class_folders: Folder) -> None:
    store = class_folders(tmp_path / "store", {"more": 4, "wasp": 3})
    folder = class_folders(tmp_path / "pets", TWO)
    (folder / "ant" / "more").symlink_to(store / "more")
    (folder / "wasp").symlink_to("../store/wasp")
    (folder / "bee" / "2.png").symlink_to(store / "wasp" / "0.png")
    dataset = opened(folder)
    ids = {*dataset.train.ids, *dataset.test.ids}
    assert dataset.classes == ("ant", "bee", "wasp")
    assert {"ant/more/3.png", "wasp/0.png", "bee/2.png"} < ids
    assert len(ids) == 5 + 4 + 3 + 1


def test_a_link_to_a_folder_above_ends(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", TWO)
    (folder / "ant" / "again").symlink_to(folder / "ant")
    (folder / "bee" / "all").symlink_to(folder)
    dataset = opened(folder)
    # bee/all holds the whole folder once more: what is reached by it is listed, but no folder within itself
    assert "bee/all/ant/0.png" in {*dataset.train.ids, *dataset.test.ids}
    assert "reached again by a link to a folder above" in dataset.notes[0]


@pytest.mark.parametrize("name", ["ant/7.png", "ant/more", "cat"])
def test_a_link_that_leads_nowhere_is_named(name: str, tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", TWO)
    (folder / name).symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=f"{name} is a link that leads nowhere"):
        opened(folder)


def test_links_to_each_other_are_named(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", TWO)
    (folder / "ant" / "x").symlink_to(folder / "ant" / "y")
    (folder / "ant" / "y").symlink_to(folder / "ant" / "x")
    with pytest.raises(UsageError, match=r"ant/x .*symbolic links"):
        opened(folder)


def test_a_pipe_that_is_called_like_an_image_is_named_and_not_opened(
    tmp_path: Path, class_folders: Folder
) -> None:
    folder = class_folders(tmp_path / "pets", TWO)
    os.mkfifo(folder / "ant" / "9.png")
    with pytest.raises(UsageError, match=r"9\.png is called like an image and is no file"):
        opened(folder)


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, class_folders: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not hold for root, who runs tests in containers."""
    folder, scandir = class_folders(tmp_path / "pets", TWO), os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"bee cannot be listed \(Permission denied\)"):
        opened(folder)


def test_a_class_of_other_files_says_what_they_are(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", {**TWO, "cat": 0})
    (folder / "cat" / "0.heic").write_bytes(b"none")
    with pytest.raises(
        UsageError, match=r"hold no image: cat; .*Left out: 1 not named like images \(\.heic 1\)"
    ):
        opened(folder)


def test_a_folder_that_is_called_like_an_image_is_a_folder(
    tmp_path: Path, class_folders: Folder, picture: Folder
) -> None:
    folder = class_folders(tmp_path / "pets", TWO)
    picture(folder / "ant" / "album.jpg" / "0.png")
    dataset = opened(folder)
    assert "ant/album.jpg/0.png" in {*dataset.train.ids, *dataset.test.ids}


# ---- names -------------------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def test_the_two_forms_of_a_name_are_one_class(tmp_path: Path, class_folders: Folder) -> None:
    class_folders(tmp_path / "pets" / "train", {COMPOSED: 2, "bar": 2})
    class_folders(tmp_path / "pets" / "test", {DECOMPOSED: 1, "bar": 1})
    assert opened(tmp_path / "pets").classes == ("bar", COMPOSED)


def test_a_data_set_is_the_same_in_either_form(
    tmp_path: Path, class_folders: Folder, picture: Folder
) -> None:
    for form in ("NFC", "NFD"):
        for number in range(4):
            name = unicodedata.normalize(form, f"café/é{number}.png")
            picture(tmp_path / form / "pets" / name, seed=number)
            picture(tmp_path / form / "pets" / "bar" / f"{number}.png", seed=10 + number)
    composed, decomposed = (opened(tmp_path / form / "pets") for form in ("NFC", "NFD"))
    assert composed.sha256 == decomposed.sha256
    assert composed.train.ids == decomposed.train.ids


def test_two_classes_that_look_alike_are_refused(tmp_path: Path, class_folders: Folder) -> None:
    with pytest.raises(UsageError, match="two folders whose name looks like 'café'"):
        opened(class_folders(tmp_path / "pets", {COMPOSED: 2, DECOMPOSED: 2}))


def test_what_is_not_seen_in_a_name_is_shown(tmp_path: Path, class_folders: Folder) -> None:
    class_folders(tmp_path / "pets" / "train", {"ant": 2, "bee": 2})
    class_folders(tmp_path / "pets" / "test", {"ant": 2, "bee ": 2})
    with pytest.raises(UsageError, match="only in train: bee; only in test: 'bee '"):
        opened(tmp_path / "pets")
