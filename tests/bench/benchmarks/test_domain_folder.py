from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.benchmarks.base import Dataset, Scale, data_roots
from bench.benchmarks.domain_folder import DomainFolder, DomainFolderOptions
from bench.benchmarks.image_folder import ImageFolder, ImageFolderOptions, resolve
from bench.benchmarks.splits import strata_of
from methods.errors import MissingError, UsageError
from tests.bench.benchmarks.conftest import domain_split

Folder = Callable[..., Path]
ALL = Scale(train_per_class=None, test_per_class=None, epochs=1, batch_size=1)
DOMAINS = ("clipart", "real", "sketch")
COUNTS = {"ant": 5, "bee": 10}


@pytest.fixture
def folder(tmp_path: Path, domain_folders: Folder) -> Path:
    return domain_folders(tmp_path / "styles", DOMAINS, COUNTS)


def benchmark_of(folder: Path, lists: Path | None = None) -> DomainFolder:
    return DomainFolder(DomainFolderOptions(path=folder, lists=lists))


def opened(folder: Path, lists: Path | None = None) -> Dataset:
    return benchmark_of(folder, lists).open([folder.parent / "root"])


# ---- without lists ---------------------------------------------------------------------------------------


def test_domains_and_classes_are_numbered_by_name(folder: Path) -> None:
    dataset = opened(folder)
    assert (dataset.domains, dataset.classes, dataset.notes) == (DOMAINS, ("ant", "bee"), ())
    for images in (dataset.train, dataset.test):
        for name, label, domain in zip(images.ids, images.labels, images.domains, strict=True):
            assert name.split("/")[:2] == [dataset.domains[domain], dataset.classes[label]]


def test_a_fifth_of_each_class_and_domain_is_held_out(folder: Path) -> None:
    dataset = opened(folder)
    assert np.unique(strata_of(dataset.test), return_counts=True)[1].tolist() == [1, 1, 1, 2, 2, 2]
    assert np.unique(strata_of(dataset.train), return_counts=True)[1].tolist() == [4, 4, 4, 8, 8, 8]


def test_domains_are_counted_without_looking_into_them(folder: Path) -> None:
    for domain in DOMAINS:
        shutil.rmtree(folder / domain)
        (folder / domain).mkdir()
    assert benchmark_of(folder).count_domains([]) == 3


def test_domains_that_are_divided_are_taken_as_they_are(tmp_path: Path, domain_folders: Folder) -> None:
    folder = tmp_path / "styles"
    for domain in ("clipart", "real"):
        domain_folders(folder / domain, ("train", "test"), {"ant": 3, "bee": 1})
    dataset = opened(folder)
    assert dataset.classes == ("ant", "bee")
    assert dataset.test.ids[:2] == ("clipart/test/ant/0.png", "clipart/test/ant/1.png")
    assert all("/train/" in name for name in dataset.train.ids)
    assert np.bincount(dataset.test.domains).tolist() == [4, 4]


def test_every_file_is_accounted_for(folder: Path) -> None:
    (folder / "README").write_text("styles")
    (folder / "clipart" / "ant" / "boxes.txt").write_text("0 0 1 1")
    (folder / "sketch" / "bee" / "Thumbs.db").write_text("")
    (note,) = opened(folder).notes
    assert note.startswith("45 images are used; left out: ")
    for words in ("1 beside the domains", "1 not named like images (.txt 1)", "1 made by a system"):
        assert words in note


def test_photographs_and_drawings_are_opened(tmp_path: Path) -> None:
    folder = resolve(Path("pacs-sub"), data_roots(None))
    if folder is None:
        pytest.skip("the subset of PACS is in no data root of this machine")
    dataset = benchmark_of(folder).open([tmp_path])
    assert dataset.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert (len(dataset.classes), len(dataset.train), len(dataset.test)) == (7, 1008, 252)


# ---- bad folders -----------------------------------------------------------------------------------------


def test_a_domain_without_one_of_the_classes_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "sketch" / "bee")
    (folder / "sketch" / "cow").mkdir()
    (folder / "sketch" / "cow" / "0.png").write_bytes((folder / "real" / "ant" / "0.png").read_bytes())
    with pytest.raises(
        UsageError, match=r"2 of 3 classes .* 'bee' is not in sketch, 'cow' is in sketch alone; add"
    ):
        opened(folder)


def test_a_domain_with_one_image_of_a_class_is_named(folder: Path) -> None:
    for number in range(1, 5):
        (folder / "real" / "ant" / f"{number}.png").unlink()
    with pytest.raises(
        UsageError, match=r"class of 'real/ant/0.png' has one image \(or has one in its domain"
    ):
        opened(folder)


def test_a_domain_with_one_image_has_too_few_classes(folder: Path, picture: Folder) -> None:
    picture(folder / "photo" / "ant" / "0.png")
    with pytest.raises(UsageError, match=r"photo holds 1 class folders \(ant\), and it takes two"):
        opened(folder)


def test_class_folders_are_no_domains(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", COUNTS)
    with pytest.raises(
        UsageError, match=r"\(ant, bee\) hold no folders: these are classes, .*image-folder:path="
    ):
        opened(folder)


def test_a_folder_of_images_among_domains_is_named(folder: Path, class_folders: Folder) -> None:
    class_folders(folder, {"zebra": 2})
    with pytest.raises(UsageError, match=r"1 of 4 domains in .* hold no class folder: zebra"):
        opened(folder)


def test_sides_are_no_domains(tmp_path: Path, domain_folders: Folder) -> None:
    folder = domain_folders(tmp_path / "pets", ("train", "val"), COUNTS)
    for use in (opened, lambda path: benchmark_of(path).count_domains([])):
        with pytest.raises(UsageError, match=r"sides of a divided data set \(train, val\)"):
            use(folder)


@pytest.mark.parametrize("domains", [(), ("real",)])
def test_it_takes_two_domains(domains: tuple[str, ...], tmp_path: Path, domain_folders: Folder) -> None:
    folder = domain_folders(tmp_path / "styles", domains, COUNTS)
    folder.mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=f"holds {len(domains)} folders .*it takes two domains"):
        opened(folder)


def test_all_domains_are_divided_or_none(folder: Path, domain_folders: Folder) -> None:
    domain_folders(folder / "photo", ("train", "test"), COUNTS)
    with pytest.raises(UsageError, match=r"photo are divided .* and clipart, real, sketch are not"):
        opened(folder)


def test_the_path_must_be_given_and_be_there(tmp_path: Path) -> None:
    assert DomainFolder(DomainFolderOptions()).locate([tmp_path]) is None
    for use in (DomainFolder.open, DomainFolder.count_domains):
        with pytest.raises(UsageError, match="domain-folder:path=FOLDER"):
            use(DomainFolder(DomainFolderOptions()), [tmp_path])
        with pytest.raises(MissingError, match="there is no folder 'nowhere'"):
            use(benchmark_of(Path("nowhere")), [tmp_path])


def test_image_folder_says_that_it_was_given_domains(folder: Path) -> None:
    dataset = ImageFolder(ImageFolderOptions(path=folder)).open([folder.parent / "root"])
    assert dataset.classes == DOMAINS
    (note,) = dataset.notes
    assert note.startswith(
        "each of the 3 classes (clipart, real, sketch) holds the same 2 folders (ant, bee)"
    )
    assert note.endswith("use the benchmark domain-folder")


def test_image_folder_says_nothing_of_folders_that_differ(folder: Path, picture: Folder) -> None:
    picture(folder / "real" / "0.png")
    assert ImageFolder(ImageFolderOptions(path=folder)).open([folder.parent / "root"]).notes == ()


# ---- with lists ------------------------------------------------------------------------------------------

NUMBERS = {"ant": 1, "bee": 0}


@pytest.fixture
def lists(folder: Path) -> Path:
    """Lists of the folder: image 0 of each class is a test image, 1 and 2 are training images."""
    target = folder.parent / "lists"
    target.mkdir()
    for domain in DOMAINS:
        for side, numbers in (("train", (1, 2)), ("test", (0,))):
            lines = [f"{domain}/{c}/{n}.png {label}" for c, label in NUMBERS.items() for n in numbers]
            (target / f"{domain}_{side}.txt").write_text("\n".join(lines) + "\n")
    return target


def test_lists_divide_and_number_the_classes(folder: Path, lists: Path) -> None:
    dataset = opened(folder, lists)
    assert dataset.classes == ("bee", "ant")
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    assert {name.split("/")[2] for name in dataset.test.ids} == {"0.png"}
    assert all(dataset.classes[label] in name for name, label in zip(*rows_of(dataset), strict=True))
    assert dataset.notes == ("27 of 45 images are in no list, and left out",)


def rows_of(dataset: Dataset) -> tuple[list[str], list[int]]:
    return (
        [*dataset.train.ids, *dataset.test.ids],
        [*dataset.train.labels.tolist(), *dataset.test.labels.tolist()],
    )


def test_a_class_that_no_list_names_is_left_out(folder: Path, lists: Path) -> None:
    for file in lists.iterdir():
        file.write_text("".join(line for line in file.open() if "/ant/" not in line))
    dataset = opened(folder, lists)
    assert dataset.classes == ("bee",)
    assert set(dataset.train.labels) == {0}


def test_the_names_of_lists_are_a_pattern(folder: Path, lists: Path) -> None:
    moved = lists.parent / "split-1"
    for file in lists.iterdir():
        domain, _, side = file.stem.partition("_")
        (moved / side).mkdir(parents=True, exist_ok=True)
        file.rename(moved / side / f"{domain}.txt")
    assert len(opened(folder, moved / "{side}" / "{domain}.txt").test) == 6


def test_lists_are_read_with_the_marks_and_slashes_of_windows(folder: Path, lists: Path) -> None:
    for file in lists.iterdir():
        text = file.read_text().replace("/", "\\").replace("\n", "\r\n")
        file.write_bytes(text.encode("utf-8-sig"))
    assert len(opened(folder, lists).test) == 6


def test_validation_is_a_part_of_the_listed_training_images(folder: Path, lists: Path) -> None:
    dataset = opened(folder, lists)
    split = domain_split(dataset, scale=ALL, eval_on="validation")
    held = {dataset.train.ids[row] for row in split.test_rows}
    assert len(held) == 6
    assert held < set(dataset.train.ids)


BAD = {
    "an image that is not there": (
        "real/ant/9.png 1",
        r"1 images .*not in the folder: real/ant/9.png \(real_",
    ),
    "another domain": ("sketch/ant/3.png 1", "line 5: sketch/ant/3.png is not in the folder real"),
    "listed twice": (
        "real/ant/1.png 1",
        r"1 images are listed more than once: real/ant/1.png \(real_train.txt",
    ),
    "on both sides": ("real/ant/0.png 1", r"listed more than once: real/ant/0.png \(real_test.txt, line 1"),
    "no number": (
        "real/ant/3.png",
        "line 5: 'real/ant/3.png' must be the path of an image, a blank and the num",
    ),
    "a name as number": ("real/ant/3.png ant", "line 5: 'real/ant/3.png ant' must be"),
    "a number of two classes": (
        "real/ant/3.png 0",
        "do not agree with the folders: clipart/bee/1.png .* has 0",
    ),
    "a class of two numbers": ("real/ant/3.png 7", "real/ant/3.png .real_train.txt, line 5. has 7; a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_line_is_named(case: str, folder: Path, lists: Path) -> None:
    line, words = BAD[case]
    with (lists / "real_train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=words):
        opened(folder, lists)


def test_a_list_that_is_not_there_is_missing(folder: Path, lists: Path) -> None:
    (lists / "sketch_test.txt").unlink()
    with pytest.raises(
        MissingError, match=r"sketch_test.txt cannot be read .*; lists= is a folder with \{domain\}"
    ):
        opened(folder, lists)


def test_a_list_without_a_class_of_a_domain_makes_no_stream_of_domains(folder: Path, lists: Path) -> None:
    kept = [line for line in (lists / "real_test.txt").open() if "/ant/" not in line]
    (lists / "real_test.txt").write_text("".join(kept))
    with pytest.raises(UsageError, match="1 have no test image: ant in real"):
        domain_split(opened(folder, lists), scale=ALL, eval_on="test")
