from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.benchmarks.base import NO_DOMAIN, Dataset, ImageSet, Scale
from bench.benchmarks.pixels import ArrayPixels
from bench.benchmarks.splits import (
    class_order,
    class_stream,
    domain_stream,
    hold_out,
    listed_order,
    own_order,
    split_by_rows,
    split_from_csv,
    strata_of,
    stratified,
    task_sizes,
)
from methods.errors import MissingError, UsageError
from tests.bench.benchmarks.conftest import ClosedPixels, class_split, domain_split

ALL = Scale(train_per_class=None, test_per_class=None, epochs=1, batch_size=1)


def labelled(counts: list[int]) -> tuple[np.ndarray, list[str]]:
    """`counts[c]` images of each class c, in class order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels, [f"class{label}/{row}" for row, label in enumerate(labels)]


def image_set_of(counts: list[int], prefix: str = "") -> ImageSet:
    labels, ids = labelled(counts)
    names = tuple(prefix + name for name in ids)
    return ImageSet(names, labels, ArrayPixels(np.zeros((len(ids), 2, 2, 3), np.uint8)))


def dataset_of(train: list[int], test: list[int]) -> Dataset:
    return Dataset(
        tuple(f"class{c}" for c in range(len(train))), image_set_of(train), image_set_of(test, "test-")
    )


some_counts = st.lists(st.integers(2, 30), min_size=1, max_size=8)


CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_own_order_is_that_of_every_seed() -> None:
    assert {own_order(6, seed) for seed in range(5)} == {tuple(range(6))}
    assert {class_order(6, seed) for seed in range(5)} > {tuple(range(6))}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_listed_order_is_the_seeds_rule_on_the_lines_of_the_file(seed: int, tmp_path: Path) -> None:
    names = ("fox", "ant", "elk", "bee", "dog", "cat")
    path = write(tmp_path / "order.txt", "\ufeff" + "\n".join(names) + "\n\n")
    order = listed_order(CLASSES, path, seed)
    assert [CLASSES[number] for number in order] == [names[line] for line in class_order(6, seed)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("ant", "bee", "cat", "dog", "elk"), "5 lines; unknown: none; missing: fox; twice: none"),
        ((*CLASSES, "gnu"), "unknown: gnu; missing: none"),
        ((*CLASSES, "ant"), "twice: ant"),
    ],
)
def test_a_list_that_is_no_order_is_answered(lines: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        listed_order(CLASSES, write(tmp_path / "order.txt", "\n".join(lines)), 0)


def test_an_absent_or_unreadable_list_is_answered(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="legal for --class-order: seeded, identity"):
        listed_order(CLASSES, tmp_path / "alphabetical", 0)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="line 1 is not UTF-16 text; save the file as UTF-8"):
        listed_order(CLASSES, tmp_path / "binary", 0)


def test_a_split_follows_the_order_that_it_is_given() -> None:
    dataset, order = dataset_of([2] * 6, [1] * 6), (5, 3, 1, 0, 2, 4)
    by_seed = class_split(dataset, tasks=2, seed=1, scale=ALL, eval_on="test")
    split = class_split(dataset, tasks=2, seed=1, scale=ALL, eval_on="test", order=order)
    assert split.class_order == order != by_seed.class_order
    assert split.sha256 == by_seed.sha256


@pytest.mark.parametrize(
    ("classes", "seed", "beginning"),
    [
        (100, 1, (53, 37, 65, 51, 4, 20, 38, 9, 10, 81)),
        (100, 2, (0, 76, 61, 63, 1, 71, 2, 6, 16, 19)),
        (200, 1, (33, 146, 79, 19, 23, 131, 12, 187, 174, 32)),
        (100, 0, tuple(range(10))),
    ],
)
def test_class_orders_are_the_published_ones(classes: int, seed: int, beginning: tuple[int, ...]) -> None:
    assert class_order(classes, seed)[:10] == beginning


@given(st.integers(1, 300), st.integers(0, 10_000))
def test_class_order_holds_every_class_once(classes: int, seed: int) -> None:
    assert sorted(class_order(classes, seed)) == list(range(classes))


def test_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="seed -1 is negative"):
        class_order(10, -1)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_task_sizes_drop_nothing_and_differ_by_one(case: tuple[int, int]) -> None:
    classes, tasks = case
    sizes = task_sizes(classes, tasks)
    assert len(sizes) == tasks
    assert sum(sizes) == classes
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


@pytest.mark.parametrize("tasks", [0, -1, 11])
def test_impossible_number_of_tasks_says_what_is_legal(tasks: int) -> None:
    with pytest.raises(UsageError, match="between 1 and 10"):
        task_sizes(10, tasks)


@given(some_counts, st.integers(1, 40))
def test_stratified_caps_each_class(counts: list[int], cap: int) -> None:
    labels, ids = labelled(counts)
    rows = stratified(labels, ids, cap)
    assert np.bincount(labels[rows]).tolist() == [min(count, cap) for count in counts]
    assert len(set(rows)) == len(rows)


@given(some_counts)
def test_a_larger_cap_keeps_the_smaller_ones_images(counts: list[int]) -> None:
    labels, ids = labelled(counts)
    assert set(stratified(labels, ids, 3)) <= set(stratified(labels, ids, 5))


@given(some_counts, st.sampled_from([0.1, 0.2, 0.5]))
def test_hold_out_partitions_and_is_stratified(counts: list[int], fraction: float) -> None:
    labels, ids = labelled(counts)
    kept, held = hold_out(labels, ids, fraction)
    assert sorted([*kept, *held]) == list(range(len(ids)))
    for label, count in enumerate(counts):
        share = int((labels[held] == label).sum())
        assert 1 <= share < count
        assert abs(share - count * fraction) < 1 or share == 1


def test_hold_out_of_imagenet_rs_size_gives_its_published_sizes() -> None:
    counts = [51 + label for label in range(199)]
    counts.append(30_000 - sum(counts))
    kept, held = hold_out(*labelled(counts), 0.2)
    assert (len(kept), len(held)) == (24_000, 6_000)


@given(some_counts, st.randoms(use_true_random=False))
def test_choices_do_not_depend_on_file_order(counts: list[int], shuffler: object) -> None:
    labels, ids = labelled(counts)
    order = list(range(len(ids)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    shuffled = labels[order], [ids[row] for row in order]

    def chosen(rows: np.ndarray, names: list[str]) -> set[str]:
        return {names[row] for row in rows}

    assert chosen(hold_out(labels, ids, 0.2)[1], ids) == chosen(hold_out(*shuffled, 0.2)[1], shuffled[1])
    assert chosen(stratified(labels, ids, 2), ids) == chosen(stratified(*shuffled, 2), shuffled[1])


def test_choices_are_the_same_on_every_machine() -> None:
    labels, ids = labelled([10, 10])
    assert hold_out(labels, ids, 0.2)[1].tolist() == [7, 8, 12, 16]  # frozen: changing it changes every split


def test_a_class_of_one_image_cannot_be_held_out_from() -> None:
    with pytest.raises(UsageError, match="class of 'class1/3' has one image"):
        hold_out(*labelled([3, 1]), 0.2)


def test_test_split_takes_all_training_and_test_images() -> None:
    split = class_split(dataset_of([4, 6], [3, 3]), tasks=2, seed=0, scale=ALL, eval_on="test")
    assert split.train_rows.tolist() == list(range(10))
    assert split.test_rows.tolist() == list(range(6))
    assert (split.test_source, split.task_sizes) == ("test", (1, 1))


def test_validation_is_a_part_of_training_and_leaves_the_test_set_closed() -> None:
    dataset = dataset_of([10, 20], [5, 5])
    closed = dataclasses.replace(dataset, test=dataclasses.replace(dataset.test, pixels=ClosedPixels(10)))
    split = class_split(closed, tasks=2, seed=0, scale=ALL, eval_on="validation")
    assert sorted([*split.train_rows, *split.test_rows]) == list(range(30))
    assert np.bincount(dataset.train.labels[split.test_rows]).tolist() == [2, 4]
    assert split.test_source == "validation"


def test_caps_apply_after_validation_was_held_out() -> None:
    dataset = dataset_of([10, 20], [5, 5])
    small = Scale(train_per_class=3, test_per_class=1, epochs=1, batch_size=1)
    whole = class_split(dataset, tasks=2, seed=0, scale=ALL, eval_on="validation")
    capped = class_split(dataset, tasks=2, seed=0, scale=small, eval_on="validation")
    assert np.bincount(dataset.train.labels[capped.train_rows]).tolist() == [3, 3]
    assert np.bincount(dataset.train.labels[capped.test_rows]).tolist() == [1, 1]
    assert set(capped.train_rows) <= set(whole.train_rows)
    assert set(capped.test_rows) <= set(whole.test_rows)


def test_split_hash_is_of_the_images_and_not_of_the_order() -> None:
    dataset = dataset_of([10, 20], [5, 5])

    def sha(**changed: object) -> str:
        arguments = {"tasks": 2, "seed": 0, "scale": ALL, "eval_on": "test"} | changed
        return class_split(dataset, **arguments).sha256  # type: ignore[arg-type]

    assert sha() == sha(seed=3) == sha(tasks=1)
    smaller = Scale(train_per_class=4, test_per_class=None, epochs=1, batch_size=1)
    assert len({sha(), sha(eval_on="validation"), sha(scale=smaller)}) == 3


def test_split_hash_distinguishes_training_from_test_images() -> None:
    pool = image_set_of([3])
    early, late = (split_by_rows(("class0",), pool, (np.arange(cut), np.arange(cut, 3))) for cut in (1, 2))
    first, second = (class_split(s, tasks=1, seed=0, scale=ALL, eval_on="test") for s in (early, late))
    assert first.sha256 != second.sha256


@pytest.fixture
def split_list(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: str, header: str = "split,id") -> Path:
        path = tmp_path / "split.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


IDS = ["a/1", "a/2", "b/1", "b/2"]


def test_external_list_may_move_any_image_and_leave_some_out(split_list: Callable[..., Path]) -> None:
    train, test = split_from_csv(IDS, split_list("train,b/2", "test,a/1", "train,a/2", "test,b/1"))
    assert (train.tolist(), test.tolist()) == ([1, 3], [0, 2])
    train, test = split_from_csv(IDS, split_list("train,a/2", "test,a/1"))
    assert (train.tolist(), test.tolist()) == ([1], [0])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (("train,a/1", "test,c/9"), "1 images that this benchmark does not have: c/9"),
        (("train,a/1", "train,a/1"), r"more than once: a/1 \(line 3\)"),
        (("train,a/1", "", "dev,a/1"), "line 4: 'dev,a/1' must be"),
        (("train, a/1",), r"does not have: ' a/1' \(line 2\)"),
        (("train,/data/a/1",), r"does not have: /data/a/1 \(line 2\); its images are named like 'a/1'"),
        (("train,a/1", 'train,"a/2', "test,b/1"), "line 3 is not CSV"),
        (("train,a/1", 'train,"a/2"x', "test,b/1"), "line 3 is not CSV"),
        (("train,a/1", "test,a/1"), "more than once: a/1"),
        (("dev,a/1",), "line 2: 'dev,a/1' must be"),
        (("train,a/1,0",), "line 2: 'train,a/1,0' must be"),
    ],
)
def test_wrong_external_list_names_the_rows(
    rows: tuple[str, ...], sentence: str, split_list: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=sentence):
        split_from_csv(IDS, split_list(*rows))


def test_external_list_needs_its_header(split_list: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="must begin with the line 'split,id', not 'id,split'"):
        split_from_csv(IDS, split_list("train,a/1", header="id,split"))


ROWS = "split,id\ntrain,a/2\ntest,b/é\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_external_list_is_read_in_every_encoding_that_is_marked(
    encoding: str, ends: str, slash: str, form: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    text = unicodedata.normalize(form, ROWS.replace("\n", ends).replace("/", slash))
    path = tmp_path / "split.csv"
    path.write_bytes(text.encode(encoding))
    train, test = split_from_csv(["a/1", "a/2", "b/1", "b/é"], path)
    assert (train.tolist(), test.tolist()) == ([1], [3])


def test_an_external_list_of_no_known_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(ROWS.encode("latin-1"))
    with pytest.raises(UsageError, match="line 3 is not UTF-8 text; save the file as UTF-8"):
        split_from_csv(IDS, path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_an_empty_external_list_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="must begin with the line 'split,id', not ''"):
        split_from_csv(IDS, path)


def test_absent_external_list_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere\.csv"):
        split_from_csv(IDS, tmp_path / "nowhere.csv")


def test_a_class_without_test_images_is_named() -> None:
    pool = image_set_of([2, 2])
    with pytest.raises(UsageError, match="1 of 2 classes have no test image: class1"):
        split_by_rows(("class0", "class1"), pool, (np.array([0, 2, 3]), np.array([1])))


# ---- streams of domains ----------------------------------------------------------------------------------

DOMAINS = ("north", "south", "west")


def in_domains(counts: dict[tuple[int, int], int], prefix: str = "") -> ImageSet:
    """`counts[domain, class]` images each; the names say which."""
    cells = [cell for cell, count in counts.items() for _ in range(count)]
    ids = tuple(f"{prefix}{domain}/{label}/{row}" for row, (domain, label) in enumerate(cells))
    domains, labels = (np.array(column, np.int64) for column in zip(*cells, strict=True))
    return ImageSet(ids, labels, ArrayPixels(np.zeros((len(ids), 2, 2, 3), np.uint8)), domains)


def evenly(count: int, prefix: str = "") -> ImageSet:
    """`count` images of each of two classes in each domain."""
    return in_domains({(domain, label): count for domain in range(3) for label in range(2)}, prefix)


def with_domains(train: ImageSet, test: ImageSet) -> Dataset:
    return Dataset(("ant", "bee"), train, test, domains=DOMAINS)


THREE_DOMAINS = with_domains(evenly(10), evenly(4, "test-"))


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_a_stream_of_domains_has_a_task_for_each(tasks: int) -> None:
    with pytest.raises(
        UsageError, match=rf"each of its 3 domains \(north, south, west\), not {tasks}; leave --tasks out"
    ):
        domain_stream(THREE_DOMAINS, (0, 1, 2), tasks)


@pytest.mark.parametrize("side", ["training", "test"])
def test_a_domain_without_a_class_is_named(side: str) -> None:
    counts = {(domain, label): 2 for domain in range(3) for label in range(2)}
    del counts[1, 0], counts[2, 1]
    lacking = in_domains(counts, f"{side}-")
    dataset = with_domains(lacking, evenly(1)) if side == "training" else with_domains(evenly(1), lacking)
    with pytest.raises(UsageError, match=f"2 have no {side} image: ant in south, bee in west; add images"):
        domain_stream(dataset, (0, 1, 2), 3)


def test_validation_is_held_out_of_each_class_and_domain() -> None:
    train = in_domains({(domain, label): 5 + 5 * domain for domain in range(3) for label in range(2)})
    split = domain_split(with_domains(train, evenly(1, "test-")), scale=ALL, eval_on="validation")
    held = train.take(split.test_rows)
    assert np.unique(strata_of(held), return_counts=True)[1].tolist() == [1, 2, 3, 1, 2, 3]
    assert sorted([*split.train_rows, *split.test_rows]) == list(range(len(train)))
    assert split.test_experience.tolist() == held.domains.tolist()


def test_a_data_set_may_name_the_images_of_validation() -> None:
    rows = np.array([0, 3, 59], np.int64)
    dataset = dataclasses.replace(THREE_DOMAINS, validation_rows=rows)
    split = domain_split(dataset, scale=ALL, eval_on="validation")
    assert split.test_rows.tolist() == [0, 3, 59]
    assert split.train_rows.tolist() == [row for row in range(60) if row not in rows]
    assert len(domain_split(dataset, scale=ALL, eval_on="test").train_rows) == 60


def test_caps_are_of_each_class_and_domain() -> None:
    small = Scale(train_per_class=3, test_per_class=1, epochs=1, batch_size=1)
    for split in (
        domain_split(THREE_DOMAINS, scale=small, eval_on="test"),
        class_split(THREE_DOMAINS, tasks=2, scale=small, eval_on="test"),
    ):
        for images, rows, cap in (
            (THREE_DOMAINS.train, split.train_rows, 3),
            (THREE_DOMAINS.test, split.test_rows, 1),
        ):
            assert np.unique(strata_of(images.take(rows)), return_counts=True)[1].tolist() == [cap] * 6


def test_an_experience_is_the_place_of_a_domain_in_the_order() -> None:
    split = domain_split(THREE_DOMAINS, scale=ALL, eval_on="test", order=(2, 0, 1))
    place = {2: 0, 0: 1, 1: 2}
    assert split.domain_order == (2, 0, 1)
    for images, experience in (
        (THREE_DOMAINS.train, split.train_experience),
        (THREE_DOMAINS.test, split.test_experience),
    ):
        assert experience.tolist() == [place[domain] for domain in images.domains.tolist()]
    assert (split.class_order, split.task_sizes) == ((0, 1), (2, 2, 2))


def test_in_a_stream_of_classes_domains_are_mixed() -> None:
    split = class_split(THREE_DOMAINS, tasks=2, scale=ALL, eval_on="test", order=(1, 0))
    assert split.domain_order == ()
    assert split.train_experience.tolist() == [1 - label for label in THREE_DOMAINS.train.labels.tolist()]


def outside(images: ImageSet, rows: slice = slice(None)) -> ImageSet:
    """The images, those of these rows without a domain."""
    domains = images.domains.copy()
    domains[rows] = NO_DOMAIN
    return dataclasses.replace(images, domains=domains)


def test_one_fixed_test_set_belongs_to_no_experience() -> None:
    dataset = with_domains(evenly(10), outside(evenly(4, "test-")))
    split = domain_split(dataset, scale=ALL, eval_on="test", order=(2, 0, 1))
    assert split.test_experience.tolist() == [NO_DOMAIN] * 24
    assert set(split.train_experience) == {0, 1, 2}
    on_validation = domain_split(dataset, scale=ALL, eval_on="validation")
    assert set(on_validation.test_experience) == {0, 1, 2}


def test_a_capped_fixed_test_set_is_balanced() -> None:
    small = Scale(train_per_class=3, test_per_class=5, epochs=1, batch_size=1)
    dataset = with_domains(evenly(10), outside(evenly(4, "test-")))
    split = domain_split(dataset, scale=small, eval_on="test")
    assert np.bincount(dataset.test.labels[split.test_rows]).tolist() == [5, 5]


@pytest.mark.parametrize("side", ["training", "test"])
def test_images_with_and_without_domain_are_not_mixed(side: str) -> None:
    mixed = outside(evenly(2, f"{side}-"), slice(1, 2))
    dataset = with_domains(mixed, evenly(1)) if side == "training" else with_domains(evenly(1), mixed)
    with pytest.raises(
        UsageError, match=f"some {side} images belong to a domain and others do not; all must"
    ):
        domain_stream(dataset, (0, 1, 2), 3)


def test_domains_are_part_of_the_split_in_a_stream_of_domains_only() -> None:
    moved = dataclasses.replace(
        THREE_DOMAINS,
        train=dataclasses.replace(THREE_DOMAINS.train, domains=THREE_DOMAINS.train.domains[::-1].copy()),
    )

    def shas(dataset: Dataset) -> tuple[str, str]:
        by_class = class_split(dataset, tasks=2, scale=ALL, eval_on="test").sha256
        return by_class, domain_split(dataset, scale=ALL, eval_on="test").sha256

    (by_class, by_domain), (moved_by_class, moved_by_domain) = shas(THREE_DOMAINS), shas(moved)
    assert by_class == moved_by_class
    assert len({by_class, by_domain, moved_by_domain}) == 3
    assert by_domain == domain_split(THREE_DOMAINS, scale=ALL, eval_on="test", order=(1, 2, 0)).sha256


def test_domains_and_labels_go_together() -> None:
    labels, ids = labelled([2])
    with pytest.raises(UsageError, match="2 image names, 2 labels, 1 domains and 2 images do not belong"):
        ImageSet(tuple(ids), labels, ArrayPixels(np.zeros((2, 2, 2, 3), np.uint8)), np.zeros(1, np.int64))


def test_there_are_no_more_tasks_than_classes() -> None:
    with pytest.raises(UsageError, match="3 tasks cannot be cut from 2 classes"):
        class_stream(THREE_DOMAINS, (0, 1), 3)
