"""The numbers of docs/footguns.md: computed as the page says, from records or by simulation."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bench.benchmarks.base import Dataset, ImageSet, Scale
from bench.benchmarks.pixels import ArrayPixels
from bench.benchmarks.splits import split_from_csv
from bench.record import RECORD_NAME, SCHEMA, Manifest, Record, write
from methods.errors import UsageError
from scripts.studies import footguns

CORRECT = [[8, None, None], [6, 10, None], [7, 4, 9]]
COUNTS = [10, 20, 10]

MANIFEST = {
    "versions": {},
    "device": "cpu",
    "threads": 1,
    "precision": "fp32",
    "backbone": "b",
    "backbone_sha256": None,
    "data_sha256": None,
    "split_sha256": None,
    "commit": None,
    "dirty": None,
    "started": "2026-01-01T00:00:00Z",
    "ended": "2026-01-01T00:00:00Z",
}


def record(method="ncm", seed=0, last=(7, 4, 9), weights="aaaaaaaa1", normalisation="backbone", split=None):
    correct = [*CORRECT[:2], list(last)]
    config = {
        "method": {"name": method},
        "seed": seed,
        "class_order": [seed, 1, 2],
        "benchmark": {"label": "cifar100", "options": {"split": split}},
        "split_sha256": f"hash of {split}",
        "backbone_sha256": weights,
        "protocol": {"normalisation": normalisation, "epochs": 1},
    }
    return Record(
        schema=SCHEMA,
        status="done",
        method=method,
        benchmark="cifar100",
        seed=seed,
        tasks=3,
        config=config,
        class_order=[0, 1, 2],
        correct=correct,
        counts=COUNTS,
        manifest=Manifest.model_validate(MANIFEST),
    )


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_two_formulas_of_others_on_a_matrix_done_by_hand():
    matrix = [[0.8, 0, 0], [0.5, 0.6, 0], [0.9, 0.2, 0.7]]
    assert footguns.forgetting_to_the_last(matrix) == pytest.approx((0.0 + 0.4) / 2)
    assert footguns.forgetting_short(matrix) == pytest.approx((0.8 - 0.9) / 2)


def test_five_formulas_differ_on_one_matrix():
    # Accuracies: 80; 60, 50; 70, 20, 90. Drops: 10 and 30; steps: 20, then (-10 + 30) / 2.
    assert footguns.formulas(record()) == pytest.approx([20.0, 20.0, 15.0, 20.0, 5.0])
    gained = footguns.formulas(record(last=(9, 4, 9)))
    assert gained == pytest.approx([(-10 + 30) / 2, (-10 + 30) / 2, (20 + 0) / 2, (0 + 30) / 2, -10 / 2])


def test_three_forms_of_accuracy():
    assert footguns.forms(record()) == pytest.approx([60.0, 50.0, (80 + 55 + 60) / 3, 10.0])


def test_one_thing_is_varied_at_a_time_and_differences_are_by_seed():
    records = [record(seed=s, last=(7, 4, s)) for s in (0, 1, 2)]
    records += [record(seed=s, last=(7, 4, s + 3), normalisation="unit") for s in (0, 1)]
    records += [record(seed=0, weights="random", last=(0, 0, 0))]
    rows = cells(footguns.varied(records, "normalisation"))
    assert [row[:2] for row in rows] == [["ncm", "backbone"], ["ncm", "unit"]]
    assert [row[3] for row in rows] == ["3", "2"]
    assert rows[0][4] == footguns.DASH
    assert rows[1][4] == "10.00 ± 0.00"
    by_weights = cells(footguns.varied(records, "backbone"))
    assert [row[1] for row in by_weights] == ["aaaaaaaa", "random"]


def test_lists_are_named_by_their_file():
    rows = cells(footguns.varied([record(), record(split="some/list-1.csv")], "split"))
    assert [row[1] for row in rows] == ["as shipped", "list-1"]


def test_a_difference_by_seed_is_tighter_where_seeds_move_both_alike():
    mean, by_seed, unpaired = footguns.pairing([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert (mean, by_seed) == (1.0, 0.0)
    assert unpaired == pytest.approx(2**0.5)


def test_variation_is_the_sample_standard_deviation_and_the_range():
    assert footguns.variation([1.0, 2.0, 3.0]) == (2.0, 1.0, 1.0, 3.0, 2.0)


def test_orders_are_grouped_by_setting_and_settings_with_few_orders_are_left_out():
    records = [record(method=m, seed=s, last=(7, 4, s)) for m in ("a", "b") for s in range(5)]
    records += [record(method="c", seed=s) for s in range(4)]
    records += [record(method="a", seed=s, normalisation="unit") for s in range(5)]
    text = footguns.variations(records)
    assert "| c " not in text
    assert text.count("| a | ") == 2
    assert "| a - b | 0.00 | 0.00 |" in text


def test_means_leave_out_cells_that_were_evaluated_at_the_end_only():
    late = record(method="late").model_copy(update={"correct": [[None] * 3, [None] * 3, [7, 4, 9]]})
    rows = cells(footguns.accuracies([record(), record(seed=1), late]))
    assert [row[:2] for row in rows] == [["ncm: cifar100, 3 tasks, weights aaaaaaaa", "2"]]


def test_only_the_t_interval_covers_with_three_values():
    coverage = footguns.coverage(3, runs=2000, resamples=200)
    assert coverage["t"] == pytest.approx(95, abs=2)
    assert coverage["bootstrap"] < 80
    assert coverage["mean ± std"] < 80
    assert coverage == footguns.coverage(3, runs=2000, resamples=200)


def test_a_list_has_so_many_of_each_class():
    labels = [0, 1] * 10
    rows = footguns.drawn(labels, 3, random.Random(1))
    assert sorted(labels[row] for row in rows) == [0, 0, 0, 1, 1, 1]
    assert rows == sorted(set(rows)) == footguns.drawn(labels, 3, random.Random(1))
    assert rows != footguns.drawn(labels, 3, random.Random(2))


def test_a_folder_is_read_and_an_empty_one_refused(tmp_path):
    with pytest.raises(UsageError, match="no finished cell"):
        footguns.answer(["accuracy", str(tmp_path)])
    write(record(), tmp_path / "cell")
    assert (tmp_path / "cell" / RECORD_NAME).exists()
    assert cells(footguns.answer(["accuracy", str(tmp_path)]))[0][2] == "60.00"


@pytest.mark.parametrize("arguments", [[], ["accuracy"], ["nothing", "here"]])
def test_other_arguments_are_answered_with_the_list_of_topics(arguments):
    with pytest.raises(UsageError, match="RESULTS"):
        footguns.answer(arguments)


def test_lists_are_of_one_size_and_differ_by_their_seed(tmp_path):
    """Six training and four test images of each of two classes, of which three and two are listed."""

    def images(per_class, prefix):
        labels = np.repeat(np.arange(2), per_class)
        ids = tuple(f"{prefix}/{row}" for row in range(len(labels)))
        return ImageSet(ids, labels, ArrayPixels(np.zeros((len(ids), 2, 2, 3), np.uint8)))

    dataset = Dataset(("a", "b"), images(6, "train"), images(4, "test"))
    scale = Scale(train_per_class=3, test_per_class=2, epochs=1, batch_size=1)
    footguns.write_lists(tmp_path / "lists", dataset, scale)
    paths = sorted((tmp_path / "lists").iterdir())
    pool = dataset.train.ids + dataset.test.ids
    rows = [split_from_csv(pool, path) for path in paths]
    assert [(len(train), len(test)) for train, test in rows] == [(6, 4)] * len(footguns.LISTS)
    assert len({tuple(train) for train, _ in rows}) > 1
