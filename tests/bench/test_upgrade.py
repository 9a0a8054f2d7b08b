"""Records that earlier versions wrote, as they lie on disk; one of each schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench import upgrade
from bench.record import Record, RecordError, derived, read, to_json

FILES = {schema: Path(__file__).parent / "records" / f"schema-{schema}.json" for schema in upgrade.OLDER}


def stored(schema: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILES[schema].read_text())
    assert content["schema"] == schema
    return content


@pytest.mark.parametrize("schema", upgrade.OLDER)
def test_everything_that_was_observed_is_kept(schema: int) -> None:
    old, record = stored(schema), read(FILES[schema])
    assert record.schema_version == upgrade.CURRENT
    for name in (
        "status",
        "method",
        "benchmark",
        "seed",
        "tasks",
        "config",
        "class_order",
        "correct",
        "counts",
    ):
        assert getattr(record, name) == old[name]
    assert record.model_dump()["diagnostics"] == old["diagnostics"]
    assert record.manifest.model_dump().items() >= old["manifest"].items()
    assert record.cost is not None
    for name in upgrade.QUANTITIES:
        assert record.cost.by_experience(name) == (old["cost"][name] or [])
    for name in upgrade.SIZES:
        assert record.cost.by_experience(name) == old["cost"]["parameters"][name]
    for now, then in zip(record.cost.latency or [], old["cost"]["latency"], strict=True):
        assert now.model.samples == then["model"]["samples"]
        assert now.plain.samples == then["plain"]["samples"]
        assert (now.batch, now.rounds, now.stable) == (then["batch"], then["rounds"], then["stable"])
    for name in ("plain_flops", "peak_memory", "conditions"):
        assert record.cost.model_dump()[name] == old["cost"][name]


@pytest.mark.parametrize("schema", upgrade.OLDER)
def test_todays_formulas_give_the_numbers_that_were_stored(schema: int) -> None:
    old, numbers = stored(schema), derived(read(FILES[schema]))
    assert numbers["metrics"] == old["metrics"]
    assert numbers["accuracy_matrix"] == old["accuracy_matrix"]
    assert numbers["throughput"] == old["cost"]["throughput"]
    for now, then in zip(numbers["latency"], old["cost"]["latency"], strict=True):
        assert now["ratio"] == then["ratio"]
        assert now["model"] == {k: then["model"][k] for k in ("median", "p95", "p99", "n")}
        assert now["plain"] == {k: then["plain"][k] for k in ("median", "p95", "p99", "n")}


@pytest.mark.parametrize("schema", upgrade.OLDER)
def test_an_old_record_has_no_predictions_and_is_written_in_the_current_schema(
    schema: int, tmp_path: Path
) -> None:
    record = read(FILES[schema])
    assert record.predictions is None
    path = tmp_path / "record.json"
    path.write_text(to_json(record))
    assert json.loads(path.read_text())["schema"] == upgrade.CURRENT
    assert read(path) == record


def test_an_unfinished_old_record_is_read(tmp_path: Path) -> None:
    failed = stored(5) | {"status": "oom", "reason": "Too large."}
    failed |= dict.fromkeys(("correct", "counts", "accuracy_matrix", "metrics", "diagnostics"))
    failed["cost"] = {"peak_memory": {"kind": "rss", "training": {"peak": 5, "baseline": 1}}}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(failed))
    assert read(path).cost == Record.model_validate(json.loads(to_json(read(path)))).cost
    path.write_text(json.dumps(failed | {"cost": None}))
    assert read(path).cost is None


@pytest.mark.parametrize("schema", upgrade.OLDER)
def test_what_it_is_given_is_left_as_it_is(schema: int) -> None:
    content = stored(schema)
    before = copy.deepcopy(content)
    upgrade.to_current(content)
    assert content == before


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "cost is a list": ({"cost": [1]}, "not laid out as a record of schema 5"),
    "cost is a text": ({"cost": "free"}, "not laid out"),
    "latency is a number": ({"latency": 3}, "not laid out"),
    "latency without samples": ({"latency": [{"model": {}, "plain": {}}]}, "not laid out"),
    "parameters are a list": ({"parameters": [1]}, "not laid out"),
    "a number in place of a list": ({"flops": 3}, "not laid out"),
    "lists of different lengths": ({"flops": [1, 2]}, "its lists have different lengths: 2, 5"),
    "an unknown quantity": ({"rent": 3}, "rent"),
    "an unknown size": ({"parameters": {"weight": [1, 2, 3, 4, 5]}}, "weight"),
}


@pytest.mark.parametrize(("changes", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_an_old_record_that_is_damaged_is_refused(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    content = stored(5)
    if "cost" in changes:
        content |= changes
    else:
        content["cost"] |= changes
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=complaint) as caught:
        read(path)
    assert str(path) in str(caught.value)
