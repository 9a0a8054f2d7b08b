from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.benchmarks.base import NO_DOMAIN, Dataset, Scale
from bench.benchmarks.core50 import TEST_SESSIONS, TRAIN_SESSIONS, Core50, Core50Options
from bench.benchmarks.splits import strata_of
from methods.errors import MissingError, UsageError
from tests.bench.benchmarks.conftest import Folder, class_split, domain_split

ALL = Scale(train_per_class=None, test_per_class=None, epochs=1, batch_size=1)


@pytest.fixture
def root(tmp_path: Path, core50_folder: Folder) -> Path:
    """A data root with 11 sessions of 11 objects of 10 frames."""
    core50_folder(tmp_path / "core50_128x128", {f"o{number}": 10 for number in range(1, 12)})
    return tmp_path


def opened(root: Path, **options: object) -> Dataset:
    return Core50(Core50Options(**{"allow_subset": True, **options})).open([root])  # type: ignore[arg-type]


def test_eight_sessions_are_domains_in_the_published_order(root: Path) -> None:
    dataset = opened(root)
    assert dataset.domains == ("s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11")
    for name, domain in zip(dataset.train.ids, dataset.train.domains, strict=True):
        assert name.split("/")[0] == dataset.domains[domain]
    assert domain_split(dataset, scale=ALL, eval_on="test").domain_order == tuple(range(8))


def test_three_sessions_are_one_test_set(root: Path) -> None:
    dataset = opened(root)
    assert {name.split("/")[0] for name in dataset.test.ids} == {"s3", "s7", "s10"} == set(TEST_SESSIONS)
    assert set(dataset.test.domains) == {NO_DOMAIN}
    split = domain_split(dataset, scale=ALL, eval_on="test")
    assert set(split.test_experience) == {NO_DOMAIN}
    assert len(split.test_rows) == 3 * 11 * 10


def test_no_test_session_shares_a_file_with_training(root: Path) -> None:
    dataset = opened(root)
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    assert not set(dataset.train.pixels.digests()) & set(dataset.test.pixels.digests())


def test_classes_are_in_the_order_of_their_numbers(root: Path) -> None:
    dataset = opened(root)
    assert dataset.classes == tuple(f"o{number}" for number in range(1, 12))
    for images in (dataset.train, dataset.test):
        assert [name.split("/")[1] for name in images.ids] == [
            dataset.classes[label] for label in images.labels
        ]


def test_validation_holds_out_the_end_of_each_video(root: Path) -> None:
    dataset = opened(root)
    for split in (
        domain_split(dataset, scale=ALL, eval_on="validation"),
        class_split(dataset, tasks=2, scale=ALL, eval_on="validation"),
    ):
        held = [dataset.train.ids[row] for row in split.test_rows]
        assert {name[-7:-4] for name in held} == {"008", "009"}
        assert len(held) == 8 * 11 * 2
        assert sorted([*split.train_rows, *split.test_rows]) == list(range(len(dataset.train)))
    assert (
        np.unique(strata_of(dataset.train)[dataset.validation_rows], return_counts=True)[1].tolist()
        == [2] * 88
    )


def test_a_video_of_one_frame_is_named(root: Path) -> None:
    for number in range(1, 10):
        (root / "core50_128x128" / "s2" / "o3" / f"C_02_03_{number:03d}.png").unlink()
    with pytest.raises(UsageError, match=r"the video of 's2/o3/C_02_03_000.png' has one frame"):
        opened(root)


@pytest.mark.parametrize("target", ["s1/o1/C_03_01_000.png", "s3/o1/C_03_02_000.png", "s1/o1/frame.png"])
def test_a_frame_in_another_place_is_named(target: str, root: Path) -> None:
    folder = root / "core50_128x128"
    shutil.copy(folder / "s3" / "o1" / "C_03_01_000.png", folder / target)
    with pytest.raises(UsageError, match=f"1 of 1211 images are not named after .*: {target}; move"):
        opened(root)


def test_another_number_of_objects_is_opened_only_on_request(root: Path) -> None:
    with pytest.raises(UsageError, match="has 11 objects, CORe50 has 50, o1 to o50; complete the folder"):
        opened(root, allow_subset=False)


def test_a_session_without_an_object_is_named(root: Path) -> None:
    shutil.rmtree(root / "core50_128x128" / "s7" / "o4")
    with pytest.raises(UsageError, match="'o4' is not in s7"):
        opened(root)


def test_a_folder_that_is_no_object_is_named(root: Path) -> None:
    for session in (*TRAIN_SESSIONS, *TEST_SESSIONS):
        folder = root / "core50_128x128" / session
        (folder / "o11").rename(folder / "cup")
    with pytest.raises(UsageError, match="are objects, o1 to o50; not legal: cup"):
        opened(root)


def test_a_missing_and_another_session_are_named(root: Path) -> None:
    (root / "core50_128x128" / "s10").rename(root / "core50_128x128" / "s12")
    with pytest.raises(UsageError, match="missing: s10; others: s12"):
        opened(root)


def test_an_absent_folder_names_the_page(tmp_path: Path) -> None:
    benchmark = Core50(Core50Options())
    assert benchmark.locate([tmp_path]) is None
    assert benchmark.count_domains([tmp_path]) == 8
    with pytest.raises(MissingError, match=r"no folder 'core50_128x128'; .*vlomonaco.github.io/core50"):
        benchmark.open([tmp_path])
