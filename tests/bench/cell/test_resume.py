"""A cell that is taken up again gives the record it would have given, bit for bit; or says it starts anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cell import checkpoint, resume
from bench.cell.measurements import ExperienceCost, Measurements, as_notes, from_notes, higher
from bench.costs import Peak, PeakMemory
from bench.probes.sizes import Size
from bench.probes.training import Phases
from bench.record import RECORD_NAME, Record, read
from methods.registry import METHODS

TINY = ("--scale", "smoke", "--seeds", "1", "--tasks", "3", "--weights", "random", "--threads", "1")
TINY += ("--set", "protocol.epochs=1", "--set", "protocol.augmentation=crop-flip")


def numbers(record: Record) -> dict[str, Any]:
    """All of a record but its times, its memory and what tells of the machine."""
    plain = record.model_dump(mode="json")
    cost = {name: plain["cost"][name] for name in ("train_images", "flops", "plain_flops", "parameters")}
    return {name: value for name, value in plain.items() if name not in ("cost", "manifest")} | cost


@pytest.fixture
def grid(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run one method into a results folder; gives the exit status and what was printed."""

    def run(method: str, results: str, *more: str) -> tuple[int, str]:
        status, out, err = cli("run", "--methods", method, *TINY, "--results", results, *more)
        return status, out + err

    return run


def record_in(folder: Path) -> Record:
    (path,) = folder.glob(f"*/{RECORD_NAME}")
    return read(path)


def states_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{checkpoint.FOLDER}/*.safetensors"))


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch, grid: Any) -> Callable[[str, str, int], None]:
    """Run a method until the state after so many experiences is kept, and stop it there."""

    def run(method: str, results: str, experiences: int) -> None:
        save = resume.save

        def saved(made: Any, cell: Any, folder: Path, outcome: Measurements) -> None:
            save(made, cell, folder, outcome)
            if len(outcome.spent) == experiences:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(resume, "save", saved)
            status, _ = grid(method, results)
        assert status == 1

    return run


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_goes_on_as_if_it_had_not_been_interrupted(
    name: str, grid: Any, stopped_after: Any, tmp_path: Path
) -> None:
    assert grid(name, "whole")[0] == 0
    whole = record_in(tmp_path / "whole")
    waits = METHODS[name].load().trains_jointly
    for experiences in (3,) if waits else (1, 2, 3):
        stopped_after(name, "parted", experiences)
        stopped = record_in(tmp_path / "parted")
        assert stopped.status == "interrupted"
        assert f"its state after experience {experiences} of 3 is kept" in (stopped.reason or "")
    status, out = grid(name, "parted")
    assert status == 0
    parted = record_in(tmp_path / "parted")
    assert numbers(parted) == numbers(whole)
    assert parted.manifest.resumed == ([] if waits else [1, 2])
    assert "it goes on after experience 3 of 3" in out
    assert states_in(tmp_path / "parted") == []


def test_a_cell_that_fails_keeps_its_state_and_goes_on_from_it(
    grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.finetune import Finetune

    began: list[int] = []

    def broken(self: Any, strategy: Any) -> None:
        began.append(len(strategy.model.head.tasks))
        if len(began) == 2:
            raise RuntimeError("the second experience breaks")

    monkeypatch.setattr(Finetune, "begin", broken)
    assert grid("finetune", "results")[0] == 1
    record = record_in(tmp_path / "results")
    assert record.status == "failed"
    assert record.reason == (
        "RuntimeError: the second experience breaks; its state after experience 1 of 3 is kept"
    )
    assert len(states_in(tmp_path / "results")) == 1
    assert grid("finetune", "results")[0] == 0
    assert began == [1, 2, 2, 3]
    assert record_in(tmp_path / "results").manifest.resumed == [1]


CONDITIONS = {"code": "other code", "threads": "threads was 1 and is 2", "torch": "torch was"}


@pytest.mark.parametrize("changed", CONDITIONS)
def test_a_state_of_other_conditions_is_not_used(
    changed: str, grid: Any, stopped_after: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after("ncm", "results", 2)
    before = resume.conditions
    other = {"code": "0" * 64, "threads": "2", "torch": "9.9"}[changed]
    monkeypatch.setattr(resume, "conditions", lambda *of: before(*of) | {changed: other})
    status, out = grid("ncm", "results")
    assert status == 0
    assert out.count("was not used, because it was made under other conditions") == 2
    assert CONDITIONS[changed] in out
    assert record_in(tmp_path / "results").manifest.resumed == []


def test_a_damaged_state_is_set_aside_and_the_one_before_it_used(
    grid: Any, stopped_after: Any, tmp_path: Path
) -> None:
    assert grid("finetune", "whole")[0] == 0
    stopped_after("finetune", "results", 2)
    last = states_in(tmp_path / "results")[-1]
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
    assert "it goes on after" not in out
    assert record_in(tmp_path / "results").manifest.resumed == []


def test_states_of_a_repetition_that_was_stopped_are_not_measured(
    grid: Any, stopped_after: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert grid("ncm", "results")[0] == 0
    before = record_in(tmp_path / "results")
    (folder,) = (path.parent for path in (tmp_path / "results").glob(f"*/{RECORD_NAME}"))
    stopped_after("ncm", "other", 2)
    for path in states_in(tmp_path / "other"):  # as a repetition leaves them that is killed
        (folder / checkpoint.FOLDER).mkdir(exist_ok=True)
        path.rename(folder / checkpoint.FOLDER / path.name)
    status, out = grid("ncm", "results")
    assert status == 0
    assert "measuring" not in out
    assert record_in(tmp_path / "results") == before
    assert states_in(tmp_path / "results") == []


def test_the_model_of_other_code_is_not_measured(
    grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.grid import sessions as measure
    from bench.grid.scheduler import Scheduler

    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "measure", lambda *_: iter(()))
        assert grid("ncm", "results")[0] == 0
    before = measure.conditions_of_code
    with monkeypatch.context() as patched:
        patched.setattr(measure, "conditions_of_code", lambda method: before(method) | {"code": "0" * 64})
        status, out = grid("ncm", "results")
    assert status == 0
    assert out.count("is not measured: it was made by other code or other versions") == 2
    assert record_in(tmp_path / "results").cost.latency is None  # type: ignore[union-attr]
    assert grid("ncm", "results")[0] == 0
    assert record_in(tmp_path / "results").cost.latency is not None  # type: ignore[union-attr]


def test_what_was_measured_survives_the_way_to_disk_as_it_is() -> None:
    spent = ExperienceCost(1 / 3, Phases(0.1, 1e-17, 8), None, None, 1, Size(1, 4), Size(2, 8), 9)
    memory = PeakMemory(kind="rss", training=Peak(peak=3, baseline=1))
    told = {"number": 0.1 + 0.2, "none": None, "table": [[1.0, 5e-324]], "odd": float("inf")}
    outcome = Measurements(
        "2025-01-31T12:00:00+00:00", [2], [[1]], [spent], [told], {"number": "A."}, memory, 7, [1]
    )
    assert from_notes(json.loads(json.dumps(as_notes(outcome)))) == outcome


def test_the_higher_peak_counts() -> None:
    low, high = (PeakMemory(kind="rss", training=Peak(peak=p, baseline=1)) for p in (2, 3))
    assert higher(low, high) == higher(high, low) == high
    assert higher(None, low) == low
    assert higher(None, None) is None


@pytest.mark.parametrize("name", list(METHODS))
def test_code_is_told_by_the_method_that_is_run(name: str, tmp_path: Path) -> None:
    from bench.cell.manifest import code_sha256

    assert code_sha256(METHODS[name].load()) == code_sha256(METHODS[name].load())
    assert len({code_sha256(METHODS[other].load()) for other in METHODS}) == len(METHODS)


def test_random_streams_go_on_where_they_stood() -> None:
    import random

    from bench.cell.rng import generator, restore_rng, seed_everything, snapshot

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
    tensors, plain = snapshot(streams, device)
    expected = draws()
    draws()
    restore_rng(streams, device, tensors, json.loads(json.dumps(plain)))
    assert draws() == expected
