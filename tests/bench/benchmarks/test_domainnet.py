from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.benchmarks.base import Dataset, Scale
from bench.benchmarks.domainnet import CLASSES, ORDERS, DomainNet, DomainNetOptions
from methods.errors import MissingError, UsageError
from tests.bench.benchmarks.conftest import domain_split, with_lists

ALL = Scale(train_per_class=None, test_per_class=None, epochs=1, batch_size=1)


@pytest.fixture
def root(tmp_path: Path, domain_folders: Callable[..., Path]) -> Path:
    """A data root with a DomainNet of three classes, each with four images in each domain."""
    with_lists(domain_folders(tmp_path / "domainnet", ORDERS["name"], {"Ant": 4, "bee": 4, "cat": 4}))
    return tmp_path


def opened(root: Path, **options: object) -> Dataset:
    return DomainNet(DomainNetOptions(**{"allow_subset": True, **options})).open([root])  # type: ignore[arg-type]


def drop(file: Path, word: str) -> None:
    file.write_text("".join(line for line in file.open() if word not in line))


def test_it_is_found_in_a_data_root(root: Path) -> None:
    assert DomainNet(DomainNetOptions()).locate([root]) == root / "domainnet"
    dataset = opened(root)
    assert dataset.classes == ("cat", "bee", "Ant")  # by the numbers of the lists
    assert (len(dataset.train), len(dataset.test)) == (54, 18)
    assert dataset.notes == ("72 images are used; left out: 12 beside the domains",)


def test_lists_may_be_elsewhere(root: Path) -> None:
    lists = root / "lists"
    lists.mkdir()
    for file in (root / "domainnet").glob("*.txt"):
        file.rename(lists / file.name)
    with pytest.raises(MissingError, match=r"the list .*clipart_train.txt cannot be read"):
        opened(root)
    assert len(opened(root, lists=lists).test) == 18


@pytest.mark.parametrize(
    ("order", "first"), [("name", "clipart infograph painting"), ("ranpac", "real quickdraw painting")]
)
def test_seed_0_keeps_the_order_and_others_shuffle_it(order: str, first: str, root: Path) -> None:
    dataset = opened(root, order=order)
    learnt = [
        [
            dataset.domains[number]
            for number in domain_split(dataset, scale=ALL, eval_on="test", seed=s).domain_order
        ]
        for s in range(3)
    ]
    assert learnt[0][:3] == first.split()
    assert len(set(map(tuple, learnt))) == 3
    assert all(sorted(domains) == sorted(ORDERS[order]) for domains in learnt)


def test_both_orders_divide_the_same_images(root: Path) -> None:
    by_name, ranpac = opened(root), opened(root, order="ranpac")
    assert by_name.sha256 == ranpac.sha256
    assert by_name.test.ids == ranpac.test.ids
    names = [[dataset.domains[d] for d in dataset.test.domains] for dataset in (by_name, ranpac)]
    assert names[0] == names[1] == [name.split("/")[0] for name in by_name.test.ids]


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_class_that_a_domain_lacks_is_left_out_and_noted(side: str, root: Path) -> None:
    drop(root / "domainnet" / f"painting_{side}.txt", "/bee/")
    dataset = opened(root)
    assert dataset.classes == ("cat", "Ant")
    named = zip(dataset.test.ids, dataset.test.labels.tolist(), strict=True)
    assert all(dataset.classes[label] in name for name, label in named)
    words = f"bee (painting has no {'training' if side == 'train' else side} image)"
    assert dataset.notes[-1] == (
        f"1 of 3 classes are left out, because they are not in the lists of all domains: {words}"
    )
    assert len(domain_split(dataset, scale=ALL, eval_on="test").train_rows) == 36


def test_another_number_of_classes_is_opened_only_on_request(root: Path) -> None:
    with pytest.raises(UsageError, match=f"have 3 classes, DomainNet has {CLASSES}; complete"):
        opened(root, allow_subset=False)


def test_a_missing_and_another_domain_are_named(root: Path) -> None:
    (root / "domainnet" / "sketch").rename(root / "domainnet" / "sketches")
    with pytest.raises(UsageError, match="missing: sketch; others: sketches"):
        opened(root)


def test_an_absent_folder_names_the_page(root: Path) -> None:
    shutil.rmtree(root / "domainnet")
    benchmark = DomainNet(DomainNetOptions())
    assert benchmark.locate([root]) is None
    assert benchmark.count_domains([root]) == 6
    with pytest.raises(MissingError, match=r"no folder 'domainnet'; .*ai.bu.edu/M3SDA"):
        benchmark.open([root])
