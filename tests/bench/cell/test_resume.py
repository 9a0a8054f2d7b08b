"""A resumed cell gives the same numbers and predictions as one that was never interrupted, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cell import checkpoint, resume
from bench.cell.checkpoint import Checkpoint
from bench.cell.measurements import Measurements, as_notes, from_notes, higher
from bench.cell.outcome import CellResult
from bench.cell.progress import Message, Notice
from bench.cell.rng import generator, restore_rng, seed_everything, snapshot_rng
from bench.cell.runner import run_cell
from bench.costs import ExperienceCost, Peak, PeakMemory
from bench.predictions import PATTERN
from bench.record import RECORD_NAME, Record, read
from methods.finetune import Finetune
from methods.registry import METHODS
from tests.bench.cell.conftest import CONTEXT, plan_cell
from tests.bench.in_process import Done, executors

TINY = ("--scale", "smoke", "--seeds", "1", "--tasks", "3", "--weights", "random", "--threads", "1")
TINY += ("--set", "protocol.epochs=1", "--set", "protocol.augmentation=crop-flip")

#: Costs that do not depend on the machine's speed.
COUNTED = (
    "train_images",
    "forward_images",
    "cached_images",
    "flops",
    "trainable",
    "stored",
    "stored_bytes",
    "deployed",
    "deployed_bytes",
)


def numbers(record: Record) -> dict[str, Any]:
    """All of a record except its times, its memory and its description of the machine."""
    plain = record.model_dump(mode="json")
    cost = plain.pop("cost")
    experiences = [{name: experience[name] for name in COUNTED} for experience in cost["experiences"]]
    del plain["manifest"]
    return plain | {"experiences": experiences, "plain_flops": cost["plain_flops"]}


@pytest.fixture
def grid(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run one method into a results folder; returns the exit status and what was printed."""

    def run(method: str, results: str, *options: str, **functions: Any) -> tuple[int, str]:
        arguments = ("run", "--methods", method, *TINY, "--results", results, *options)
        status, out, err = cli(*arguments, executors=executors(**functions))
        return status, out + err

    return run


def record_in(folder: Path) -> Record:
    (path,) = folder.glob(f"*/{RECORD_NAME}")
    return read(path)


def predictions_in(folder: Path) -> bytes:
    (path,) = folder.glob(f"*/{PATTERN}")
    return path.read_bytes()


def checkpoints_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{checkpoint.FOLDER}/*.safetensors"))


def stopping_after(tasks: int) -> Callable[..., None]:
    """Saves checkpoints as `resume.save` does, and stops the cell after the one of so many tasks."""

    def save(run: Any, cell: Any, folder: Path, measurements: Measurements) -> None:
        resume.save(run, cell, folder, measurements)
        if measurements.experiences == tasks:
            raise KeyboardInterrupt

    return save


@pytest.fixture
def stopped_after(grid: Any) -> Callable[[str, str, int], None]:
    """Run a method until the checkpoint after so many tasks is saved, and stop it there."""

    def run(method: str, results: str, tasks: int) -> None:
        def start(function: Any, *arguments: Any, **limits: Any) -> Done:
            return Done(partial(function, save=stopping_after(tasks)), *arguments, **limits)

        assert grid(method, results, start=start)[0] == 1

    return run


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_continues_as_if_it_had_not_been_interrupted(name: str, tmp_path: Path) -> None:
    def run(results: str, save: Callable[..., None] = resume.save) -> CellResult:
        cell, inputs = plan_cell(name, tmp_path / results)
        return run_cell(cell, inputs.paths, CONTEXT, messages.append, save)

    messages: list[Message] = []
    whole = run("whole")
    trains_jointly = METHODS[name].load().trains_jointly
    for tasks in (3,) if trains_jointly else (1, 2, 3):
        stopped = run("parted", stopping_after(tasks))
        assert stopped.record.status == "interrupted"
        assert stopped.record.reason == f"stopped; its checkpoint after task {tasks} of 3 is kept"
        assert stopped.record.predictions is None
        assert stopped.predictions is None
    parted = run("parted")
    assert numbers(parted.record) == numbers(whole.record)
    assert parted.predictions == whole.predictions
    assert parted.predictions is not None
    assert parted.record.manifest.resumed == ([] if trains_jointly else [1, 2])
    assert messages[-1] == Notice("it continues after task 3 of 3")


def test_a_command_continues_a_cell_and_deletes_its_checkpoints(
    grid: Any, stopped_after: Any, tmp_path: Path
) -> None:
    assert grid("linear-probe", "whole")[0] == 0
    stopped_after("linear-probe", "parted", 2)
    stopped = record_in(tmp_path / "parted")
    assert stopped.status == "interrupted"
    assert "its checkpoint after task 2 of 3 is kept" in (stopped.reason or "")
    status, out = grid("linear-probe", "parted")
    assert status == 0
    assert "it continues after task 2 of 3" in out
    assert numbers(record_in(tmp_path / "parted")) == numbers(record_in(tmp_path / "whole"))
    assert predictions_in(tmp_path / "parted") == predictions_in(tmp_path / "whole")
    assert checkpoints_in(tmp_path / "parted") == []


def test_a_cell_that_fails_keeps_its_checkpoint_and_continues_from_it(
    grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[int] = []

    def begin(self: Any, strategy: Any) -> None:
        heads.append(len(strategy.model.head.tasks))
        if len(heads) == 2:
            raise RuntimeError("the second task fails")

    monkeypatch.setattr(Finetune, "begin", begin)
    assert grid("finetune", "results")[0] == 1
    record = record_in(tmp_path / "results")
    assert record.status == "failed"
    assert record.reason == ("RuntimeError: the second task fails; its checkpoint after task 1 of 3 is kept")
    assert len(checkpoints_in(tmp_path / "results")) == 1
    assert grid("finetune", "results")[0] == 0
    assert heads == [1, 2, 2, 3]
    assert record_in(tmp_path / "results").manifest.resumed == [1]


def change_conditions(path: Path, **changes: str) -> None:
    """Replace a checkpoint by one with the same content, as if it had been made under other conditions."""
    saved = checkpoint.load(path)
    notes = {**saved.notes, "conditions": saved.notes["conditions"] | changes}
    experiences = int(path.name.partition(".")[0])
    checkpoint.save(Checkpoint(saved.tensors, notes), path.parent.parent, experiences)


OTHER = {
    "code": ("0" * 64, "other code"),
    "threads": ("2", "threads was 2 and is 1"),
    "torch": ("9.9", "torch was 9.9 and is"),
}


@pytest.mark.parametrize("changed", OTHER)
def test_a_checkpoint_of_other_conditions_is_not_used(
    changed: str, grid: Any, stopped_after: Any, tmp_path: Path
) -> None:
    stopped_after("ncm", "results", 2)
    value, complaint = OTHER[changed]
    for path in checkpoints_in(tmp_path / "results"):
        change_conditions(path, **{changed: value})
    status, out = grid("ncm", "results")
    assert status == 0
    assert out.count("was not used, because it was made under other conditions") == 2
    assert complaint in out
    assert record_in(tmp_path / "results").manifest.resumed == []


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    grid: Any, stopped_after: Any, tmp_path: Path
) -> None:
    assert grid("finetune", "whole")[0] == 0
    stopped_after("finetune", "results", 2)
    last = checkpoints_in(tmp_path / "results")[-1]
    last.write_bytes(last.read_bytes()[:-1])
    status, out = grid("finetune", "results")
    assert status == 0
    assert f"{checkpoint.FOLDER}/{last.name}' is damaged" in out
    assert "it was set aside" in out
    record = record_in(tmp_path / "results")
    assert record.manifest.resumed == [1]
    assert numbers(record) == numbers(record_in(tmp_path / "whole"))


def test_rerun_all_starts_from_the_beginning(grid: Any, stopped_after: Any, tmp_path: Path) -> None:
    stopped_after("ncm", "results", 2)
    status, out = grid("ncm", "results", "--rerun", "all")
    assert status == 0
    assert "it continues after" not in out
    assert record_in(tmp_path / "results").manifest.resumed == []


def test_checkpoints_of_a_repetition_that_was_stopped_are_not_measured(
    grid: Any, stopped_after: Any, tmp_path: Path
) -> None:
    assert grid("ncm", "results")[0] == 0
    before = record_in(tmp_path / "results")
    (folder,) = (path.parent for path in (tmp_path / "results").glob(f"*/{RECORD_NAME}"))
    stopped_after("ncm", "other", 2)
    for path in checkpoints_in(tmp_path / "other"):  # as a repetition that is killed leaves them
        (folder / checkpoint.FOLDER).mkdir(exist_ok=True)
        path.rename(folder / checkpoint.FOLDER / path.name)
    status, out = grid("ncm", "results")
    assert status == 0
    assert "measuring" not in out
    assert record_in(tmp_path / "results") == before
    assert checkpoints_in(tmp_path / "results") == []


def test_a_model_of_other_code_is_not_measured(grid: Any, tmp_path: Path) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no measurement today")

    results = tmp_path / "results"
    assert grid("ncm", "results", run=fail)[0] == 1
    codes = [checkpoint.load(path).notes["conditions"]["code"] for path in checkpoints_in(results)]
    for path in checkpoints_in(results):
        change_conditions(path, code="0" * 64)
    status, out = grid("ncm", "results")
    assert status == 0
    assert out.count("is not measured: it was made by other code or other versions") == 2
    assert record_in(results).cost.latency is None  # type: ignore[union-attr]
    for path, code in zip(checkpoints_in(results), codes, strict=True):
        change_conditions(path, code=code)
    assert grid("ncm", "results")[0] == 0
    assert record_in(results).cost.latency is not None  # type: ignore[union-attr]


def test_measurements_are_restored_exactly_from_disk() -> None:
    measurements = Measurements(
        "2025-01-31T12:00:00+00:00",
        counts=[2],
        correct=[[1]],
        costs=[
            ExperienceCost(train_seconds=1 / 3, consolidate_seconds=1e-17, train_images=8, stored_bytes=4)
        ],
        diagnostics=[{"number": 0.1 + 0.2, "none": None, "table": [[1.0, 5e-324]], "odd": float("inf")}],
        diagnostic_help={"number": "A."},
        memory=PeakMemory(kind="rss", training=Peak(peak=3, baseline=1)),
        plain_flops=7,
        resumed=[1],
    )
    assert from_notes(json.loads(json.dumps(as_notes(measurements)))) == measurements


def test_the_higher_peak_counts() -> None:
    low, high = (PeakMemory(kind="rss", training=Peak(peak=p, baseline=1)) for p in (2, 3))
    assert higher(low, high) == higher(high, low) == high
    assert higher(None, low) == low
    assert higher(None, None) is None


def test_random_streams_continue_where_they_were() -> None:
    device = torch.device("cpu")
    streams = {"data order": generator(3, "data order"), "statistics": generator(3, "statistics")}

    def draws() -> list[Any]:
        own = [torch.rand(2, generator=stream).tolist() for stream in streams.values()]
        return [
            *own,
            torch.randn(3).tolist(),
            np.random.randn(3).tolist(),
            random.gauss(0, 1),
            random.random(),
        ]

    seed_everything(5)
    draws()
    tensors, plain = snapshot_rng(streams, device)
    expected = draws()
    draws()
    restore_rng(streams, device, tensors, json.loads(json.dumps(plain)))
    assert draws() == expected
