from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bench
from bench import frame as frames
from bench.costs import ExperienceCost
from bench.metrics import METRICS
from bench.predictions import Predictions, describe_file, to_bytes
from bench.record import RECORD_NAME, read_all
from methods.errors import UsageError
from tests.bench.test_record import COST, EXPERIENCES, content, costing

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
ALL = ("cells", "tasks", "experiences", "latency", "predictions")

#: Fields of a record that did not finish.
FAILED = {
    "status": "failed",
    "reason": "It broke.",
    "correct": None,
    "counts": None,
    "class_order": None,
    "class_names": None,
    "diagnostics": None,
    "cost": None,
}

Store = Callable[..., Path]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def store(results: Path) -> Store:
    """Write a record's file, with fields changed, into a folder of this name."""

    def write(name: str, **changes: Any) -> Path:
        folder = results / name
        folder.mkdir()
        (folder / RECORD_NAME).write_text(json.dumps(content(**{"predictions": None} | changes)))
        return folder

    return write


def predicted() -> Predictions:
    """Predictions that agree with the counts of `content`: 9 of 10, then 6 of 10 and 10 of 20."""
    true = np.repeat([1, 3], [10, 20]).astype(np.uint16)
    wrong = np.zeros_like(true)
    right = np.array([[i < 9 for i in range(30)], [i < 6 or 10 <= i < 20 for i in range(30)]])
    classes = np.where(right, true, wrong)
    classes[0, 10:] = np.iinfo(np.uint16).max
    return Predictions(np.arange(100, 130, dtype=np.int32), true, classes)


def store_predicted(store: Store, name: str, **changes: Any) -> Path:
    """A cell with a predictions file; gives the path of that file."""
    data = to_bytes(predicted())
    entry = describe_file(data)
    folder = store(name, predictions=entry.model_dump(), **changes)
    (folder / entry.file).write_bytes(data)
    return folder / entry.file


def load_quietly(results: Path, what: Any) -> tuple[pd.DataFrame, list[str]]:
    """The frame, and the sentences of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = bench.load(results, what)
    return loaded, [str(one.message) for one in caught]


# ---- cells -------------------------------------------------------------------------------------


def test_there_is_a_row_per_cell_and_unfinished_ones_are_among_them(results: Path, store: Store) -> None:
    store("b", seed=1, **FAILED)
    store("a", seed=0)
    loaded = bench.load(str(results))
    assert list(loaded.columns[:7]) == ["cell", "method", "benchmark", "scenario", "seed", "status", "reason"]
    assert loaded.iloc[:, :7].to_numpy().tolist() == [
        ["a", "duallora:gate=none", "digits", "class-incremental", 0, "done", None],
        ["b", "duallora:gate=none", "digits", "class-incremental", 1, "failed", "It broke."],
    ]


def test_every_metric_has_a_column_with_its_value(results: Path, store: Store) -> None:
    store("a")
    store("b", **FAILED)
    loaded = bench.load(results).set_index("cell")
    (record, _) = read_all(results)
    assert record.metrics is not None
    for metric in METRICS:
        column = loaded[f"{metric.name}_fraction"]
        assert column.notna()["a"] == (metric.name in record.metrics)
        assert math.isnan(column["a"]) or column["a"] == record.metrics[metric.name]
        assert math.isnan(column["b"])
    assert loaded["accuracy_fraction"]["a"] == pytest.approx((6 / 10 + 10 / 20) / 2)


def test_costs_are_totals_or_of_the_last_task(results: Path, store: Store) -> None:
    experiences = [
        {"train_seconds": 1.5, "eval_seconds": 0.25, "train_images": 20, "stored": 5, "flops": 17},
        {"train_seconds": None, "eval_seconds": 0.5, "train_images": 30, "stored": 7, "flops": 18},
    ]
    store("a", **costing(experiences=experiences))
    (row,) = bench.load(results).to_dict("records")
    assert row["eval_total_seconds"] == 0.75
    assert row["train_total_images"] == 50
    assert math.isnan(row["train_total_seconds"])
    assert row["parameters_stored_elements"] == 7
    assert row["prediction_flops_per_image"] == 18
    assert row["plain_vit_flops_per_image"] == 16
    assert pd.isna(row["parameters_trainable_elements"])


def test_latency_and_memory_are_in_seconds_and_bytes(results: Path, store: Store) -> None:
    store("a")
    (row,) = bench.load(results).to_dict("records")
    # after the last task: rounds of (0.2, 0.4), (0.6, 0.2) and, of the plain ViT, (0.1, 0.1), (0.2, 0.2)
    assert row["latency_batch_64_median_seconds"] == pytest.approx(0.3)
    assert row["latency_batch_64_plain_vit_median_seconds"] == pytest.approx(0.15)
    assert row["latency_batch_64_ratio_to_plain_vit"] == pytest.approx((0.3 / 0.1 + 0.4 / 0.2) / 2)
    assert (row["peak_memory_kind"], row["peak_memory_training_bytes"]) == ("rss", 1000)
    assert row["peak_memory_training_baseline_bytes"] == 400
    assert pd.isna(row["peak_memory_inference_bytes"])


def test_settings_have_a_column_by_owner_and_a_type(results: Path, store: Store) -> None:
    def config(options: dict[str, Any]) -> dict[str, Any]:
        return {
            "method": {"name": "a", "options": options},
            "benchmark": {"name": "digits", "options": {"split": None}},
            "protocol": {"name": "common", "epochs": 3, "image_size": 32},
            "scale": "quick",
            "eval_on": "test",
        }

    store("a", config=config({"rank": 4, "lr": 1, "blocks": [0, 1], "on": True}))
    store("b", config=config({"lr": 0.5, "name": "x"}))
    loaded = bench.load(results)
    row = loaded.iloc[0].to_dict()
    expected = {"method.rank": 4, "method.lr": 1.0, "method.blocks": "[0, 1]", "method.on": True}
    assert {name: row[name] for name in expected} == expected
    assert (row["protocol.epochs"], row["image_size_pixels"], row["protocol"]) == (3, 32, "common")
    assert (row["scale"], row["eval_on"], row["tasks"]) == ("quick", "test", 2)
    types = loaded.dtypes.astype(str)
    settings = ["method.rank", "method.lr", "method.on", "method.name", "benchmark.split"]
    assert types[settings].tolist() == ["Int64", "float64", "boolean", "object", "object"]
    assert loaded["method.rank"][1] is pd.NA


def test_numbers_keep_their_type_where_some_are_missing(results: Path, store: Store) -> None:
    store("a")
    store("b", **FAILED)
    types = bench.load(results).dtypes.astype(str)
    assert types["seed"] == types["tasks"] == "int64"
    assert types["prediction_flops_per_image"] == types["train_total_images"] == "Int64"
    assert types["forgetting_fraction"] == types["energy_total_joules"] == "float64"
    assert types["uncommitted_changes"] == "boolean"


def test_an_integer_beyond_64_bits_is_kept(results: Path, store: Store) -> None:
    store("a", **costing(plain_flops=2**63), seed=2**63)
    assert bench.load(results)["plain_vit_flops_per_image"].tolist() == [2**63]
    assert bench.load(results, "tasks")["seed"].unique().tolist() == [2**63]


# ---- tasks, experiences, latency ---------------------------------------------------------------


def test_tasks_have_a_row_for_each_evaluation(results: Path, store: Store) -> None:
    store("a")
    store("b", **FAILED)
    store("c", correct=[[None, None], [6, 10]])
    loaded = bench.load(results, what="tasks")
    columns = ["cell", "after_task", "test_task", "correct", "count", "accuracy_fraction"]
    assert loaded[columns].to_numpy().tolist() == [
        ["a", 1, 1, 9, 10, 0.9],
        ["a", 2, 1, 6, 10, 0.6],
        ["a", 2, 2, 10, 20, 0.5],
        ["c", 2, 1, 6, 10, 0.6],
        ["c", 2, 2, 10, 20, 0.5],
    ]
    assert loaded.dtypes["correct"] == "int64"


def test_a_cell_that_was_never_evaluated_has_no_tasks(results: Path, store: Store) -> None:
    store("a", correct=[[None, None], [None, None]])
    assert bench.load(results, "tasks").empty


def test_experiences_have_every_cost_of_a_record(results: Path, store: Store) -> None:
    store("a")
    loaded = bench.load(results, "experiences")
    assert len(loaded.columns) == len(frames.KEYS) + 1 + len(ExperienceCost.model_fields)
    assert loaded["task"].tolist() == [1, 2]
    assert loaded["train_seconds"].tolist()[0] == 1.5
    assert math.isnan(loaded["train_seconds"][1])
    assert loaded["prediction_flops_per_image"].tolist() == [17, 18]
    assert loaded["stored_bytes"].tolist() == [20, pd.NA]
    for field in ExperienceCost.model_fields:
        column = loaded[frames.UNIT_NAMES.get(field, field)]
        first = EXPERIENCES[0][field]
        assert pd.isna(column[0]) if first is None else column[0] == first


def test_latency_has_a_row_per_call(results: Path, store: Store) -> None:
    store("a")
    loaded = bench.load(results, "latency")
    calls = loaded[(loaded["after_task"] == 2) & (loaded["batch"] == 64)]
    assert calls[["round", "model", "seconds"]].to_numpy().tolist() == [
        *([1, "method", 0.2], [1, "method", 0.4], [2, "method", 0.6], [2, "method", 0.2]),
        *([1, "plain ViT", 0.1], [1, "plain ViT", 0.1], [2, "plain ViT", 0.2], [2, "plain ViT", 0.2]),
    ]
    assert len(loaded) == 16
    (record,) = read_all(results)
    assert record.cost is not None
    by_round = calls.groupby(["model", "round"])["seconds"].median()
    ratio = (by_round["method"] / by_round["plain ViT"]).median()
    assert record.cost.last_latency(64).ratio == ratio  # type: ignore[union-attr]


def test_what_was_not_measured_has_no_rows(results: Path, store: Store) -> None:
    store("a", cost=None)
    store("b", cost=COST | {"latency": None, "conditions": None})
    assert bench.load(results, "latency").empty
    assert set(bench.load(results, "experiences")["cell"]) == {"b"}


# ---- predictions -------------------------------------------------------------------------------


def test_predictions_have_a_row_per_image_that_was_evaluated(results: Path, store: Store) -> None:
    store_predicted(store, "a")
    store("b", **FAILED)
    loaded, problems = load_quietly(results, "predictions")
    assert problems == []
    assert len(loaded) == 10 + 30
    assert set(loaded["cell"]) == {"a"}
    right = loaded["true"] == loaded["predicted"]
    assert right.groupby(loaded["after_task"]).sum().to_dict() == {1: 9, 2: 16}
    assert loaded.iloc[9][["after_task", "row", "true", "predicted"]].tolist() == [1, 109, 1, 0]
    assert loaded.iloc[10][["after_task", "row", "true", "predicted"]].tolist() == [2, 100, 1, 1]


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def another(path: Path) -> None:
    path.write_bytes(to_bytes(predicted())[:100] + b"x")


@pytest.mark.parametrize("damage", [missing, truncated, another])
def test_a_damaged_predictions_file_is_reported_and_costs_its_cell_only(
    results: Path, store: Store, damage: Callable[[Path], None]
) -> None:
    path = store_predicted(store, "a", seed=0)
    store_predicted(store, "b", seed=1)
    damage(path)
    loaded, problems = load_quietly(results, "predictions")
    assert set(loaded["cell"]) == {"b"}
    (sentence,) = problems
    assert str(path) in sentence
    assert "--rerun all" in sentence
    for what in ("cells", "tasks"):
        whole, none = load_quietly(results, what)
        assert (set(whole["cell"]), none) == ({"a", "b"}, [])


def test_a_record_without_predictions_is_reported(results: Path, store: Store) -> None:
    folder = store("a")
    loaded, problems = load_quietly(results, "predictions")
    assert loaded.empty
    (sentence,) = problems
    assert f"'{folder}' has no predictions" in sentence


# ---- any frame ---------------------------------------------------------------------------------


def test_a_damaged_record_is_reported_where_it_is_loaded_and_left_out(results: Path, store: Store) -> None:
    store("a")
    damaged = store("b") / RECORD_NAME
    damaged.write_text("{")
    with pytest.warns(UserWarning, match="is not whole JSON") as caught:
        loaded = bench.load(results)
    assert loaded["cell"].tolist() == ["a"]
    (warning,) = caught
    assert str(damaged) in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("what", ALL)
def test_an_empty_folder_gives_an_empty_frame_with_its_columns(
    results: Path, tmp_path_factory: pytest.TempPathFactory, store: Store, what: Any
) -> None:
    store_predicted(store, "a")
    full, empty = bench.load(results, what), bench.load(tmp_path_factory.mktemp("empty"), what)
    assert empty.empty
    fixed = [name for name in full.columns if "." not in name and "latency_batch" not in name]
    assert list(empty.columns) == fixed
    assert empty.dtypes.tolist() == full.dtypes[fixed].tolist()


@pytest.mark.parametrize("what", ALL)
def test_every_frame_begins_with_the_cell(results: Path, store: Store, what: Any) -> None:
    store_predicted(store, "a", seed=3)
    loaded = bench.load(results, what)
    assert list(loaded.columns[:5]) == ["cell", "method", "benchmark", "scenario", "seed"]
    first = ("a", "duallora:gate=none", "digits", "class-incremental", 3)
    assert set(map(tuple, loaded.iloc[:, :5].to_numpy())) == {first}


@pytest.mark.parametrize("what", ["cels", "", None, ["cells"], "Cells"])
def test_an_unknown_frame_is_refused_with_the_legal_ones(results: Path, what: Any) -> None:
    with pytest.raises(UsageError, match="Legal: cells, experiences, latency, predictions, tasks"):
        bench.load(results, what)


@pytest.mark.parametrize("what", ALL)
def test_a_missing_folder_is_refused_with_what_to_give(results: Path, what: Any) -> None:
    (results / "file").write_text("")
    for path in (results / "nowhere", results / "file"):
        with pytest.raises(UsageError, match=r"cannot read the results folder .*bench run --results DIR"):
            bench.load(path, what)


def test_records_of_an_older_schema_are_loaded() -> None:
    cells, tasks = bench.load(REFERENCE), bench.load(REFERENCE, "tasks")
    assert len(cells) == 54
    last = tasks[tasks["after_task"] == tasks.groupby("cell")["after_task"].transform("max")]
    means = last.groupby("cell")["accuracy_fraction"].mean()
    assert means[cells["cell"]].to_numpy() == pytest.approx(cells["accuracy_fraction"].to_numpy())
    assert not cells["latency_batch_1_ratio_to_plain_vit"].isna().any()
    assert len(bench.load(REFERENCE, "experiences")) == cells["tasks"].sum()


def test_bench_imports_pandas_only_to_load() -> None:
    code = (
        "import sys, bench\n"
        "print('pandas' in sys.modules, 'numpy' in sys.modules)\n"
        "bench.load\n"
        "print('pandas' in sys.modules, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "False"]


def test_another_attribute_of_bench_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'laod'"):
        _ = bench.laod  # type: ignore[attr-defined]
