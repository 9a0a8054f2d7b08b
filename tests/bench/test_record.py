from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench import metrics
from bench.costs import relative_width
from bench.metrics import Metric
from bench.record import RECORD_NAME, SCHEMA, Record, RecordError, kind, read, read_all, to_json, write
from bench.storage import StorageError
from methods.errors import UsageError

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

CORRECT: list[list[int | None]] = [[9, None], [6, 10]]
COUNTS = [10, 20]

MANIFEST = {
    "versions": {"torch": "2.9", "python": "3.12"},
    "device": "cpu: a processor",
    "threads": 2,
    "precision": "fp32",
    "backbone": "micro",
    "backbone_sha256": "ab" * 32,
    "data_sha256": "cd" * 32,
    "split_sha256": "ef" * 32,
    "commit": None,
    "dirty": None,
    "started": "2025-01-31T12:00:00+00:00",
    "ended": "2025-01-31T12:01:00Z",
}

LATENCY: dict[str, Any] = {
    "experiences": 2,
    "batch": 64,
    "rounds": 2,
    "warmup": 10,
    "stable": True,
    "model": {"samples": [0.2, 0.4, 0.6, 0.2]},
    "plain": {"samples": [0.1, 0.1, 0.2, 0.2]},
}

EXPERIENCES: list[dict[str, Any]] = [
    {
        "train_seconds": 1.5,
        "prepare_seconds": 0.5,
        "consolidate_seconds": 0.0,
        "train_images": 20,
        "forward_images": 26,
        "cached_images": 14,
        "eval_seconds": 0.5,
        "energy_joules": None,
        "flops": 17,
        "trainable": 5,
        "stored": 5,
        "stored_bytes": 20,
        "deployed": 100,
        "deployed_bytes": 400,
    },
    {"train_seconds": None, "eval_seconds": 0.5, "flops": 18},
]

COST: dict[str, Any] = {
    "experiences": EXPERIENCES,
    "plain_flops": 16,
    "peak_memory": {"kind": "rss", "training": {"peak": 1000, "baseline": 400}, "inference": None},
    "latency": [LATENCY | {"experiences": 1, "batch": 1}, LATENCY],
    "conditions": {
        "device": "cpu: a processor",
        "precision": "fp32",
        "threads": 2,
        "image_size": 32,
        "merged": False,
        "beside": ["duallora:gate=none", "ncm"],
        "started": "2025-01-31T12:02:00+00:00",
    },
}


def costing(**changes: Any) -> dict[str, Any]:
    """A change of the content: other costs."""
    return {"cost": COST | changes}


DIAGNOSTICS: dict[str, Any] = {
    "gate_own": {"meaning": "Mean opening of the own gate.", "values": [None, [0.9, 0.8, 1.0]]},
    "task_confidence": {"meaning": "Mean confidence.", "values": [1.0, 0.5]},
    "prompt_choices": {"meaning": "Share of images.", "values": [[[1.0]], [[0.75, 0.25], [0.0, 1.0]]]},
}


def content(**changes: Any) -> dict[str, Any]:
    """A valid record's content, as it lies on disk, with top-level fields changed."""
    return {
        "schema": SCHEMA,
        "status": "done",
        "reason": None,
        "method": "duallora:gate=none",
        "benchmark": "digits",
        "seed": 0,
        "tasks": 2,
        "scenario": "class-incremental",
        "config": {"protocol": {"name": "common", "epochs": 3}},
        "class_order": [1, 0, 3, 2],
        "class_names": ["dog", "cat", "über", "1"],
        "correct": CORRECT,
        "counts": COUNTS,
        "predictions": {"file": f"predictions-{'0' * 12}.safetensors", "sha256": "0" * 64},
        "diagnostics": DIAGNOSTICS,
        "cost": COST,
        "manifest": MANIFEST,
    } | changes


def telling(*values: Any) -> dict[str, Any]:
    """A change of the content: one diagnostic with these values."""
    return {"diagnostics": {"gate_own": {"meaning": "A gate.", "values": list(values)}}}


RESULTS = ("correct", "counts", "predictions", "diagnostics")
NO_RESULT: dict[str, Any] = dict.fromkeys(RESULTS)


def test_fields_are_those_of_the_contract_in_their_order() -> None:
    assert list(json.loads(to_json(Record.model_validate(content())))) == [*content(), "derived"]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    record = Record.model_validate(content())
    path = write(record, tmp_path / "cell")
    assert path == tmp_path / "cell" / RECORD_NAME
    assert read(path) == record
    assert record.cost is not None
    assert record.cost.peak_memory is not None
    assert record.cost.peak_memory.training is not None
    assert record.cost.peak_memory.training.above == 600


def test_equal_records_give_equal_bytes() -> None:
    turned = json.loads(json.dumps(content()))
    for part in (
        turned["manifest"],
        turned["config"]["protocol"],
        turned["cost"],
        turned["diagnostics"],
    ):
        items = list(part.items())
        part.clear()
        part.update(reversed(items))
    assert to_json(Record.model_validate(turned)) == to_json(Record.model_validate(content()))


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Record.model_validate(content()).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("status", ["failed", "oom", "diverged", "interrupted", "skipped"])
def test_an_unfinished_cell_keeps_its_reason_and_holds_no_result(status: str) -> None:
    record = Record.model_validate(
        content(
            status=status, reason="It went wrong.", class_order=None, class_names=None, cost=None, **NO_RESULT
        )
    )
    assert not record.done
    with pytest.raises(ValidationError, match="there is no reason"):
        Record.model_validate(content(status=status, reason=" ", **NO_RESULT))
    with pytest.raises(ValidationError, match="there are results: counts"):
        Record.model_validate(content(status=status, reason="Why.", **NO_RESULT | {"counts": COUNTS}))


@pytest.mark.parametrize("diagnostics", [None, {}])
def test_a_method_may_have_nothing_to_tell(diagnostics: Any, tmp_path: Path) -> None:
    record = Record.model_validate(content(diagnostics=diagnostics))
    assert read(write(record, tmp_path)).diagnostics == diagnostics


@pytest.mark.parametrize("diagnostics", [DIAGNOSTICS, {}])
def test_an_unfinished_cell_has_no_diagnostics(diagnostics: Any) -> None:
    changes = NO_RESULT | {"status": "failed", "reason": "Why.", "diagnostics": diagnostics}
    with pytest.raises(ValidationError, match="there are results: diagnostics"):
        Record.model_validate(content(**changes))


# ---- what follows by a formula -------------------------------------------------------------------


def test_what_follows_by_a_formula_is_written_for_people() -> None:
    derived = json.loads(to_json(Record.model_validate(content())))["derived"]
    assert derived["accuracy_matrix"] == [[0.9, None], [0.6, 0.5]]
    assert derived["metrics"] == metrics.compute_all(CORRECT, COUNTS, metrics.metrics_of("class-incremental"))
    assert derived["throughput"] == pytest.approx(64 / 0.3)
    assert [entry["ratio"] for entry in derived["latency"]] == pytest.approx([2.5, 2.5])
    assert derived["latency"][1]["model"] == pytest.approx({"median": 0.3, "p95": 0.57, "p99": 0.594, "n": 4})


@pytest.mark.parametrize("derived", [None, 3, {"metrics": {"accuracy": 0.0}}, {"odd": [1]}], ids=str)
def test_what_follows_by_a_formula_is_not_read(derived: Any, tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_text(json.dumps(content() | {"derived": derived}))
    assert read(tmp_path / RECORD_NAME) == Record.model_validate(content())


def last_accuracy(correct: metrics.Correct, counts: metrics.Counts) -> float | None:
    """A metric of this test: accuracy on the last task."""
    hits = correct[-1][-1]
    return None if hits is None else hits / counts[-1]


LAST = Metric(
    "last_accuracy", "accuracy on the last task", "a[T,T]", "fraction", "higher", "here", last_accuracy
)


def test_a_metric_that_is_added_is_known_of_every_old_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, LAST))
    records = read_all(REFERENCE)
    assert len(records) == len(list(REFERENCE.glob("*/record.json"))) > 0
    for record in records:
        assert record.correct is not None
        assert record.counts is not None
        assert (record.metrics or {})["last_accuracy"] == record.correct[-1][-1] / record.counts[-1]


def test_a_formula_that_is_corrected_gives_new_numbers_of_every_old_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = [record.metrics for record in read_all(REFERENCE)]
    changed = [replace(m, compute=last_accuracy) if m.name == "forgetting" else m for m in metrics.METRICS]
    monkeypatch.setattr(metrics, "METRICS", tuple(changed))
    for old, record in zip(before, read_all(REFERENCE), strict=True):
        assert old is not None
        assert record.metrics is not None
        assert record.correct is not None
        assert record.counts is not None
        assert record.metrics["forgetting"] == record.correct[-1][-1] / record.counts[-1]
        assert record.metrics["forgetting"] != old["forgetting"]
        assert {k: v for k, v in record.metrics.items() if k != "forgetting"} == {
            k: v for k, v in old.items() if k != "forgetting"
        }


@pytest.mark.parametrize(
    ("written", "meant", "kinds"),
    [
        ("[0, 1]", "[0.0, 1.0]", {"a number"}),
        ("[null, [1, 0, 2]]", "[null, [1.0, 0.0, 2.0]]", {"a list of 3"}),
        ("[[1], [0.5]]", "[[1.0], [0.5]]", {"a list of 1"}),
        ("[null, [[1, 0]]]", "[null, [[1.0, 0.0]]]", {"a table"}),
        ("[[[1]], [[1, 0], [0, 1]]]", "[[[1.0]], [[1.0, 0.0], [0.0, 1.0]]]", {"a table"}),
    ],
)
def test_whole_numbers_in_json_are_numbers_of_every_kind(
    written: str, meant: str, kinds: set[str], tmp_path: Path
) -> None:
    path = tmp_path / RECORD_NAME
    path.write_text(json.dumps(content(**telling(*json.loads(written)))))
    found = (read(path).diagnostics or {})["gate_own"].values
    assert json.dumps(found) == meant
    assert {kind(value) for value in found if value is not None} == kinds


def test_the_joint_reference_evaluates_the_last_row_only() -> None:
    correct = [[None, None], [9, 10]]
    record = Record.model_validate(content(correct=correct))
    assert record.metrics is not None
    assert record.metrics["forgetting"] is None


WRONG = {
    "reason of a done cell": ({"reason": "Why not."}, "a reason is given"),
    "no counts": ({"counts": None}, "counts is null"),
    "no class order": ({"class_order": None}, "class_order is null"),
    "a class without a name": ({"class_names": ["a"]}, "1 names for the 4 classes"),
    "a name that is no text": ({"class_names": ["a", "b", "c", 4]}, "class_names"),
    "a class twice": ({"class_order": [0, 1, 1]}, "twice"),
    "too few rows": ({"correct": [[9, None]]}, "2 rows of as many"),
    "a short row": ({"correct": [[9], [6, 10]]}, "2 rows of as many"),
    "too many counts": ({"counts": [10, 20, 30]}, "2 entries"),
    "one test set for new classes": ({"counts": [10], "correct": [[9], [6]]}, "class-incremental stream"),
    "two columns of one test set": ({"counts": [10], "correct": [[9, 9], [6, 6]]}, "2 rows of as many"),
    "evaluated before learnt": ({"correct": [[9, 0], [6, 10]]}, "above the diagonal"),
    "more hits than images": ({"correct": [[11, None], [6, 10]]}, "11 of 10"),
    "negative hits": ({"correct": [[-1, None], [6, 10]]}, "-1 of 10"),
    "task without images": ({"counts": [0, 20], "correct": [[0, None], [0, 10]]}, "at least one test image"),
    "an unknown field": ({"extra": 1}, "extra"),
    "an unknown status": ({"status": "ok"}, "status"),
    "infinite time": (costing(experiences=[EXPERIENCES[0], {"train_seconds": float("inf")}]), "finite"),
    "nan in the config": ({"config": {"lr": float("nan")}}, "finite"),
    "an experience too many": (costing(experiences=[*EXPERIENCES, {}]), "3 entries for 2 tasks"),
    "an experience too few": (costing(experiences=EXPERIENCES[:1]), "1 entries for 2 tasks"),
    "a negative time": (
        costing(experiences=[EXPERIENCES[0], {"eval_seconds": -1.0}]),
        "greater than or equal",
    ),
    "an unknown cost": (costing(experiences=[EXPERIENCES[0], {"rent": 1.0}]), "rent"),
    "a predictions file elsewhere": (
        {"predictions": {"file": "../predictions-000000000000.safetensors", "sha256": "0" * 64}},
        "predictions.file",
    ),
    "no samples": (
        costing(latency=[LATENCY | {"model": {"samples": []}}]),
        "at least 1 item",
    ),
    "a sample lost": (
        costing(latency=[LATENCY | {"plain": {"samples": [0.1, 0.1, 0.2]}}]),
        "4 samples of the model and 3 of the plain ViT",
    ),
    "half a round": (costing(latency=[LATENCY | {"rounds": 3}]), "number in each of 3 rounds"),
    "latency under unknown conditions": (costing(conditions=None), "measured together"),
    "a time of no length": (
        costing(latency=[LATENCY | {"model": {"samples": [0.0, 1.0]}}]),
        "greater than 0",
    ),
    "memory below nothing": (
        costing(peak_memory={"kind": "rss", "training": {"peak": -1, "baseline": 0}}),
        "greater than or equal to 0",
    ),
    "a diagnostic too few": (telling(1.0), "gate_own has 1 entries for 2 tasks"),
    "a diagnostic too many": (telling(1.0, 1.0, None), "gate_own has 3 entries for 2 tasks"),
    "a diagnostic of two kinds": (telling(1.0, [1.0]), "several kinds: a list of 1, a number"),
    "blocks lost": (telling([1.0, 1.0], [1.0]), "several kinds: a list of 1, a list of 2"),
    "no blocks": (telling([], None), "at least 1 item"),
    "an infinite diagnostic": (telling(1.0, float("inf")), "finite"),
    "nan in a block": (telling(None, [1.0, float("nan")]), "finite"),
    "a diagnostic in words": (telling("high", "low"), "valid number"),
    "a number for a line": (
        telling(None, [[1.0], 1.0]),
        r"values\.1\.table\.1\s+Input should be a valid list",
    ),
    "a line for a number": (
        telling(None, [1.0, [1.0]]),
        r"values\.1\.list\.1\s+Input should be a valid number",
    ),
    "tables of tables": (telling([[[1.0]]], None), "valid number"),
    "a table without columns": (telling(None, [[], []]), "at least 1 item"),
    "nan in a table": (telling(None, [[1.0], [float("nan")]]), "finite"),
    "a ragged table": (telling(None, [[1.0, 0.0], [1.0]]), "lines of the table have different lengths: 1, 2"),
    "a table and a list": (telling([[1.0]], [1.0]), "several kinds: a list of 1, a table"),
    "a table and a number": (telling([[1.0]], 1.0), "several kinds: a number, a table"),
    "a line for what is to come": (
        telling([[1.0], [1.0]], None),
        "after experience 1 has 2 lines.*at most 1",
    ),
    "a line too many": (telling(None, [[1.0]] * 3), "after experience 2 has 3 lines.*at most 2"),
    "a diagnostic unexplained": ({"diagnostics": {"gate_own": {"values": [1.0, 1.0]}}}, "meaning"),
    "an empty meaning": ({"diagnostics": {"x": {"meaning": "", "values": [1.0, 1.0]}}}, "meaning"),
    "local time": ({"manifest": MANIFEST | {"started": "2025-01-31T12:00:00+01:00"}}, "UTC"),
    "not a time": ({"manifest": MANIFEST | {"ended": "yesterday"}}, "isoformat"),
}


@pytest.mark.parametrize(
    ("correct", "counts"), [([[9, 3], [6, 10]], [10, 20]), ([[2], [4]], [5]), ([[None], [4]], [5])]
)
def test_a_stream_of_domains_may_be_tested_on_what_is_not_learnt_yet(
    correct: list[list[int | None]], counts: list[int], tmp_path: Path
) -> None:
    config = {"domains": ["photo", "sketch"]}
    changes = {"scenario": "domain-incremental", "correct": correct, "counts": counts, "config": config}
    record = Record.model_validate(content(**changes))
    assert read(write(record, tmp_path)) == record
    assert record.domains == ["photo", "sketch"]
    assert Record.model_validate(content()).domains is None


@pytest.mark.parametrize(("changes", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_a_contradiction_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Record.model_validate(content(**changes))


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut in half": (json.dumps(content()).encode()[:300], "not whole JSON"),
    "empty": (b"", "not whole JSON"),
    "another schema": (
        json.dumps(content(schema=99)).encode(),
        "schema 99, and this version reads schemas 4 to 6",
    ),
    "a schema that no release wrote": (json.dumps(content(schema=3)).encode(), "schema 3"),
    "no schema": (b"{}", "schema None"),
    "not an object": (b"[1, 2]", "holds a list"),
    "not text": (b"\xff\xfe\x00", "not UTF-8"),
    "invalid": (json.dumps(content(seed=-1)).encode(), "seed: input should be greater"),
    "nan": (json.dumps(content(config={"lr": float("nan")})).encode(), "finite"),
}


@pytest.mark.parametrize(("data", "complaint"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named_with_what_to_do(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "cell" / RECORD_NAME
    path.parent.mkdir()
    path.write_bytes(data)
    for reader in (lambda: read(path), lambda: read_all(tmp_path)):
        with pytest.raises(RecordError, match=complaint) as caught:
            reader()
        assert str(path) in str(caught.value)
        assert "--rerun failed" in str(caught.value)


def test_a_missing_record_is_a_record_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read(tmp_path / RECORD_NAME)


def test_a_write_that_fails_leaves_the_old_record_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Record.model_validate(content())
    path = write(first, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left.*nothing that was on disk before is harmed"):
        write(Record.model_validate(content(seed=1)), tmp_path)
    assert read(path) == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_write_replaces_the_first(tmp_path: Path) -> None:
    write(Record.model_validate(content()), tmp_path)
    path = write(Record.model_validate(content(seed=7)), tmp_path)
    assert read(path).seed == 7
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_while_a_record_is_replaced_reads_the_old_one_whole(tmp_path: Path) -> None:
    first = Record.model_validate(content())
    with write(first, tmp_path).open() as reader:
        write(Record.model_validate(content(seed=7)), tmp_path)
        assert reader.read() == to_json(first)


def test_all_records_come_by_folder_name(tmp_path: Path) -> None:
    for name, seed in (("b", 1), ("a", 2), ("c", 0)):
        write(Record.model_validate(content(seed=seed)), tmp_path / name)
    (tmp_path / "published").mkdir()
    (tmp_path / "notes.txt").write_text("not a cell")
    assert [record.seed for record in read_all(tmp_path)] == [2, 1, 0]


def test_an_empty_folder_has_no_record(tmp_path: Path) -> None:
    assert read_all(tmp_path) == []


def test_a_folder_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UsageError, match="cannot read the results folder") as caught:
            read_all(folder)
        assert str(folder) in str(caught.value)


def test_reading_records_imports_nothing_heavy() -> None:
    code = "import sys, bench.record; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "pandas", "matplotlib", "scipy", "avalanche", "timm"}
    assert not heavy & set(done.stdout.split())


def test_the_width_of_an_interval_over_rounds() -> None:
    """1.57 IQR / sqrt(n), McGill, Tukey and Larsen (1978); the quartiles of 1, 2, 3, 4, 5 are 2 and 4."""
    assert relative_width([3.0, 1.0, 2.0, 5.0, 4.0]) == pytest.approx(1.57 * 2 / 5**0.5 / 3)
    assert relative_width([2.0] * 7) == 0.0
    assert relative_width([1.0, 2.0, 3.0, 4.0]) is None
