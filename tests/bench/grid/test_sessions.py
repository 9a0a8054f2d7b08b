"""What a grid measures of inference: of which models, beside which, and what becomes of their states."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import record
from bench.cell.progress import ignore
from bench.grid import sessions as measure
from bench.grid.executors.worker_process import DiedError
from bench.grid.scheduler import Scheduler
from bench.record import RECORD_NAME, Record, read
from methods.finetune import Finetune
from methods.registry import METHODS

TINY = (
    "--scale",
    "smoke",
    "--seeds",
    "0",
    "--tasks",
    "3",
    "--weights",
    "random",
    "--set",
    "protocol.epochs=1",
)


def records(folder: Path) -> dict[str, Record]:
    return {found.method: found for found in map(read, (folder / "results").glob(f"*/{RECORD_NAME}"))}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """A grid of all methods, each cell in a process of its own."""
    from bench.cli import main

    folder = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(measure, "BATCHES", {"cpu": (1, 2)})  # the session's own process reads the file's
        assert main(["run", *TINY]) == 0
    assert not list(folder.rglob("*.safetensors"))
    return records(folder)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_measured_beside_all_others(name: str, everything: dict[str, Record]) -> None:
    found = everything[name]
    assert found.cost is not None
    assert found.cost.latency is not None
    assert found.cost.conditions is not None
    stages = (3,) if METHODS[name].load().trains_jointly else (1, 3)
    assert [one.experiences for one in found.cost.latency] == [*stages, *stages]
    assert found.cost.conditions.beside == list(METHODS)
    plain = [one.plain for one in found.cost.latency]
    others = [
        other.cost.latency[-1].plain for other in everything.values() if other.cost and other.cost.latency
    ]
    assert others == [plain[-1]] * len(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_memory_and_operations_of_every_method_are_there(name: str, everything: dict[str, Record]) -> None:
    cost = everything[name].cost
    assert cost is not None
    assert cost.plain_flops is not None
    assert cost.flops is not None
    assert cost.parameters is not None
    assert all(flops >= 0.99 * cost.plain_flops for flops in cost.flops[-1:])
    assert cost.parameters.deployed_bytes is not None
    assert cost.parameters.deployed_bytes == sorted(cost.parameters.deployed_bytes)
    if cost.peak_memory is not None:  # not every system tells
        assert cost.peak_memory.kind == "rss"
        for phase in (cost.peak_memory.training, cost.peak_memory.inference):
            assert phase is not None
            assert 0 < phase.above < phase.peak


def test_methods_that_merge_say_so_and_cost_no_operation_more(everything: dict[str, Record]) -> None:
    merged = {name for name, found in everything.items() if found.cost and found.cost.conditions.merged}
    assert merged == {"finetune", "inflora", "joint"}
    for name in merged:
        assert everything[name].cost.flops[-1] == everything[name].cost.plain_flops


def test_two_passes_count_twice(everything: dict[str, Record]) -> None:
    for name in ("l2p", "dualprompt", "coda-prompt"):
        assert everything[name].cost.flops[-1] > 2 * 0.99 * everything[name].cost.plain_flops


def test_the_methods_own_work_is_shown_apart(everything: dict[str, Record]) -> None:
    costs = {name: found.cost for name, found in everything.items()}
    for cost in costs.values():
        parts = zip(cost.train_seconds, cost.prepare_seconds, cost.consolidate_seconds, strict=True)
        assert all(0 <= prepare + consolidate < whole for whole, prepare, consolidate in parts)
    assert costs["ncm"].train_images == [0, 0, 0]
    assert costs["finetune"].train_images[0] > 0
    assert costs["joint"].train_images[:2] == [0, 0]


def test_a_restored_model_is_the_one_that_was_evaluated(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, torch.Tensor] = {}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    end, inference = Finetune.end, measure._inference

    def told(self: Any, strategy: Any) -> None:
        end(self, strategy)
        seen["trained"] = strategy.model.eval()(images).detach()

    def watched(model: Any, *arguments: Any) -> Any:
        seen.setdefault("memory", model(images).detach())
        return inference(model, *arguments)

    monkeypatch.setattr(Finetune, "end", told)
    monkeypatch.setattr(measure, "_inference", watched)
    assert cli("run", "--methods", "finetune", *TINY)[0] == 0
    torch.testing.assert_close(seen["memory"], seen["trained"], atol=1e-5, rtol=1e-5)


def test_energy_is_that_of_each_training(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = itertools.accumulate(itertools.cycle((1.0, 2.5)))
    monkeypatch.setattr("bench.probes.energy.counter_of", lambda device: lambda: next(drawn))
    assert cli("run", "--methods", "ncm", *TINY)[0] == 0
    cost = records(tmp_path)["ncm"].cost
    assert cost is not None
    assert cost.energy_joules == [2.5] * 3


def test_a_grid_that_was_stopped_goes_on_measuring(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure, "latencies", stopped)
        status, out, _ = cli("run", "--methods", "ncm,joint", *TINY)
    assert status == 1
    assert "the same command goes on measuring inference" in out
    found = records(tmp_path)
    assert {r.status for r in found.values()} == {"done"}
    assert {r.cost.latency for r in found.values() if r.cost} == {None}
    times = [r.manifest.started for r in found.values()]
    status, out, _ = cli("run", "--methods", "ncm,joint", *TINY)
    assert status == 0
    assert "2 done before, 0 to run" in out
    found = records(tmp_path)
    assert all(r.cost and r.cost.latency for r in found.values())
    assert [r.manifest.started for r in found.values()] == times
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_cannot_be_measured_is_told_and_loses_nothing(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*arguments: Any) -> None:
        raise DiedError("its process was ended by SIGKILL")

    with monkeypatch.context() as patched:
        patched.setattr(measure, "latencies", died)
        status, out, err = cli("run", "--methods", "ncm", *TINY)
    assert status == 1
    assert "inference could not be measured: its process was ended by SIGKILL" in out
    assert "Traceback" not in out + err
    assert records(tmp_path)["ncm"].done
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_sessions_hold_cells_that_differ_in_the_method_only(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[list[str]] = []

    def noted(self: Scheduler, planned: Any) -> Any:
        sessions = measure.waiting(planned, self.paths, ignore)
        held.extend([cell.method.label for cell in cells] for cells in sessions)
        return iter(())

    monkeypatch.setattr(Scheduler, "measure", noted)
    monkeypatch.setattr(measure, "MOST_CELLS", 2)
    methods = ("--methods", "ncm,ncm:metric=cosine,linear-probe")
    cli("run", *methods, *TINY[:2], "--seeds", "0,1", *TINY[4:])
    assert held == [["ncm", "ncm:metric=cosine"], ["linear-probe"]] * 2


def test_what_is_added_to_a_record_changes_nothing_else(everything: dict[str, Record]) -> None:
    plain = json.loads(record.to_json(everything["ncm"]))
    assert plain["cost"]["conditions"]["precision"] == plain["manifest"]["precision"]
    assert plain["cost"]["conditions"]["image_size"] == plain["config"]["protocol"]["image_size"]
