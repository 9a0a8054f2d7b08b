"""Timing sessions: which models are measured together, what is recorded, what happens to checkpoints."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import record
from bench.cell import jobs
from bench.cell.checkpoint import list_checkpoints, load
from bench.cell.inference import LEAST_SECONDS, deployed_model, timing_seconds, trained_seconds
from bench.cell.inputs import Inputs
from bench.cell.manifest import now
from bench.cell.outcome import InferenceResult
from bench.cell.progress import Observer, ignore
from bench.cell.resume import save
from bench.cell.runner import run_cell, train_and_evaluate
from bench.cli import main
from bench.grid.executors.serial import SerialExecutor
from bench.grid.executors.worker_process import DiedError
from bench.grid.sessions import pending_sessions, run_session
from bench.grid.stopping import Stop
from bench.predictions import PATTERN
from bench.record import RECORD_NAME, Record, read
from bench.spec import Cell
from methods.registry import METHODS
from tests.bench.grid.conftest import cells
from tests.bench.grid.test_scheduler import CONTEXT
from tests.bench.in_process import BATCHES, Executors, executors, run_here

TINY = ("--scale", "smoke", "--seeds", "0", "--tasks", "3", "--weights", "random")
TINY += ("--set", "protocol.epochs=1")
SMALL = {"scale": "smoke", "tasks": 3, "protocol_options": {"epochs": 1}}


class SmallBatches(SerialExecutor):
    """Cells and measurements in separate processes, with few images per call."""

    def measure_inference(
        self, cells: Sequence[Cell], observe: Observer, stop: Stop
    ) -> dict[str, InferenceResult]:
        return run_session(cells, self.paths, self.first, observe, stop, batches=BATCHES)


def records(results: Path) -> dict[str, Record]:
    return {each.method: each for each in map(read, results.glob(f"*/{RECORD_NAME}"))}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """The records of a grid of all methods, with every cell in a separate process."""
    results = tmp_path_factory.mktemp("grid") / "results"
    arguments = ["run", *TINY, "--methods", "all", "--results", str(results)]
    assert main(arguments, Executors({"auto": SmallBatches})) == 0
    assert len(list(results.glob(f"*/{PATTERN}"))) == len(METHODS)
    assert len(list(results.rglob("*.safetensors"))) == len(METHODS)  # and no checkpoint
    return records(results)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_measured_beside_all_others(name: str, everything: dict[str, Record]) -> None:
    cost = everything[name].cost
    assert cost is not None
    assert cost.latency is not None
    assert cost.conditions is not None
    stages = (3,) if METHODS[name].load().trains_jointly else (1, 3)
    assert [each.experiences for each in cost.latency] == [*stages, *stages]
    assert cost.conditions.beside == list(METHODS)
    plain = [each.plain for each in cost.latency]
    others = [
        other.cost.latency[-1].plain for other in everything.values() if other.cost and other.cost.latency
    ]
    assert others == [plain[-1]] * len(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_memory_and_operations_of_every_method_are_recorded(name: str, everything: dict[str, Record]) -> None:
    cost = everything[name].cost
    assert cost is not None
    assert cost.plain_flops is not None
    assert cost.by_experience("flops")[-1] >= 0.99 * cost.plain_flops
    deployed_bytes = cost.by_experience("deployed_bytes")
    assert len(deployed_bytes) == 3
    assert deployed_bytes == sorted(deployed_bytes)
    if cost.peak_memory is not None:  # not every system measures it
        assert cost.peak_memory.kind == "rss"
        assert cost.peak_memory.inference_batch == BATCHES["cpu"][-1]
        for phase in (cost.peak_memory.training, cost.peak_memory.inference):
            assert phase is not None
            assert 0 < phase.above < phase.peak


def test_methods_that_merge_are_marked_and_cost_no_operation_more(everything: dict[str, Record]) -> None:
    costs = {name: each.cost for name, each in everything.items() if each.cost and each.cost.conditions}
    merged = {name for name, cost in costs.items() if cost.conditions and cost.conditions.merged}
    assert merged == {"c-lora", "finetune", "inflora", "joint"}
    for name in merged:
        assert costs[name].experiences[-1].flops == costs[name].plain_flops


def test_two_passes_count_twice(everything: dict[str, Record]) -> None:
    for name in ("l2p", "dualprompt", "coda-prompt"):
        cost = everything[name].cost
        assert cost is not None
        assert cost.by_experience("flops")[-1] > 2 * 0.99 * (cost.plain_flops or 0)


def test_the_methods_own_work_is_recorded_apart(everything: dict[str, Record]) -> None:
    costs = {name: each.cost.experiences for name, each in everything.items() if each.cost}
    assert len(costs) == len(METHODS)
    for each in itertools.chain.from_iterable(costs.values()):
        own = (each.prepare_seconds or 0) + (each.consolidate_seconds or 0)
        assert 0 <= own < (each.train_seconds or 0)
    images = {name: [each.train_images for each in experiences] for name, experiences in costs.items()}
    assert images["ncm"] == [0, 0, 0]
    assert (images["finetune"][0] or 0) > 0
    assert images["joint"][:2] == [0, 0]


def test_what_is_added_to_a_record_changes_nothing_else(everything: dict[str, Record]) -> None:
    plain = json.loads(record.to_json(everything["ncm"]))
    assert plain["cost"]["conditions"]["precision"] == plain["manifest"]["precision"]
    assert plain["cost"]["conditions"]["image_size"] == plain["config"]["protocol"]["image_size"]


@pytest.mark.parametrize("method", ["finetune", "l2p"])
def test_a_restored_model_is_the_one_that_was_evaluated(method: str, inputs: Inputs) -> None:
    (item,) = cells(inputs, method, **SMALL)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    run, _ = train_and_evaluate(item.cell, inputs, now(), ignore, save)
    with torch.no_grad():
        trained = run.strategy.model.eval()(images)
        restored = deployed_model(item.cell, inputs, item.cell.tasks).model(images)
    torch.testing.assert_close(restored, trained, atol=1e-5, rtol=1e-5)


def test_energy_is_recorded_for_each_training(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joules = itertools.accumulate(itertools.cycle((1.0, 2.5)))
    monkeypatch.setattr("bench.cell.runner.counter_of", lambda device: lambda: next(joules))
    assert cli("run", "--methods", "ncm", *TINY)[0] == 0
    cost = records(tmp_path / "results")["ncm"].cost
    assert cost is not None
    assert cost.by_experience("energy_joules") == [2.5] * 3


def failing_with(error: BaseException) -> Executors:
    """Executors that cannot time inference."""

    def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if function is jobs.latencies:
            raise error
        return run_here(function, *arguments, **options)

    return executors(run=run)


def test_a_grid_that_was_stopped_goes_on_measuring(cli: Callable[..., Any], tmp_path: Path) -> None:
    grid = ("run", "--methods", "ncm,joint", *TINY)
    status, out, _ = cli(*grid, executors=failing_with(KeyboardInterrupt()))
    assert status == 1
    assert "the same command goes on measuring inference" in out
    before = records(tmp_path / "results")
    assert {each.status for each in before.values()} == {"done"}
    assert {each.cost.latency for each in before.values() if each.cost} == {None}
    status, out, _ = cli(*grid)
    assert status == 0
    assert "2 done before, 0 to run" in out
    after = records(tmp_path / "results")
    assert all(each.cost and each.cost.latency for each in after.values())
    assert [each.manifest for each in after.values()] == [each.manifest for each in before.values()]
    kept = list((tmp_path / "results").rglob("*.safetensors"))
    assert len(kept) == len(list(tmp_path.rglob(PATTERN))) == 2


def test_what_cannot_be_measured_is_reported_and_nothing_is_lost(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    died = DiedError("its process was ended by SIGKILL")
    status, out, err = cli("run", "--methods", "ncm", *TINY, executors=failing_with(died))
    assert status == 1
    assert "inference could not be measured: its process was ended by SIGKILL" in out
    assert "Traceback" not in out + err
    assert records(tmp_path / "results")["ncm"].done
    assert len(list(tmp_path.rglob("*/checkpoints/*.safetensors"))) == 2


def test_a_session_has_cells_that_differ_only_in_the_method(inputs: Inputs) -> None:
    methods = ("ncm", "ncm:metric=cosine", "linear-probe")
    planned = cells(inputs, *methods, seeds=[0, 1], **SMALL)
    assert pending_sessions(planned, inputs.paths, ignore) == []
    for item in planned:
        result = run_cell(item.cell, inputs.paths, CONTEXT, ignore)
        record.write(result.record, inputs.paths.results / item.cell.id)
    sessions = pending_sessions(planned, inputs.paths, ignore)
    assert [{cell.seed for cell in session} for session in sessions] == [{0}, {1}]
    assert [[cell.method.label for cell in session] for session in sessions] == [list(methods)] * 2
    sessions = pending_sessions(planned, inputs.paths, ignore, max_cells=2)
    labels = [[cell.method.label for cell in session] for session in sessions]
    assert labels == [["ncm", "ncm:metric=cosine"], ["linear-probe"]] * 2


@pytest.mark.parametrize(("damaged", "measured"), [(1, True), (3, False)], ids=["the first", "the last"])
def test_a_damaged_checkpoint_is_set_aside_and_costs_its_own_model_only(
    inputs: Inputs, damaged: int, measured: bool
) -> None:
    planned = cells(inputs, "ncm", **SMALL)
    (cell,) = (item.cell for item in planned)
    result = run_cell(cell, inputs.paths, CONTEXT, ignore)
    folder = inputs.paths.results / cell.id
    record.write(result.record, folder)
    path = list_checkpoints(folder)[damaged]
    path.write_bytes(path.read_bytes()[:-1])
    messages: list[Any] = []
    assert pending_sessions(planned, inputs.paths, messages.append) == ([(cell,)] if measured else [])
    (message,) = messages
    assert "it was set aside, and the inference of this model is not measured" in message.text
    assert list(list_checkpoints(folder)) == [n for n in (1, 3) if n != damaged]


def test_the_time_for_timing_follows_from_what_the_cells_took(inputs: Inputs) -> None:
    (planned,) = cells(inputs, "linear-probe", seeds=[0], **SMALL)
    run_cell(planned.cell, inputs.paths, CONTEXT, ignore)
    notes = load(max(list_checkpoints(inputs.paths.results / planned.cell.id).items())[1]).notes
    costs = notes["measurements"]["costs"]
    took = sum(cost["train_seconds"] + cost["eval_seconds"] for cost in costs)
    assert trained_seconds([planned.cell, planned.cell], inputs.paths) == pytest.approx(2 * took)
    assert timing_seconds(took) == LEAST_SECONDS
    assert timing_seconds(1000.0) == 25.0  # a twentieth, for two batch sizes
