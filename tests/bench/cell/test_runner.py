"""From a running cell to its record: diagnostics, predictions, costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from bench import predictions
from bench.benchmarks.splits import Split
from bench.cell import runner
from bench.cell.inference import deployed_model
from bench.cell.measurements import Measurements, results_of
from bench.cell.outcome import CellResult
from bench.cell.progress import ignore
from bench.cell.runner import build_run, deployed_copy, eval_batch, plain_vit, predictions_of, run_cell
from bench.predictions import Predictions
from bench.record import Diagnostic, Record
from methods.dualprompt import DualPrompt
from methods.finetune import Finetune
from methods.joint import Joint
from methods.ncm import Ncm
from tests.bench.cell.conftest import CONTEXT, plan_cell

MEANINGS = {
    "evaluations": "How often it was evaluated so far.",
    "per_block": "A number for each block.",
    "choices": "Share of an experience's images that were given each prompt.",
}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., CellResult]:
    """Run a method on three tasks."""

    def result_of(method: str, folder: str = "results", **changes: Any) -> CellResult:
        cell, inputs = plan_cell(method, tmp_path / folder, **changes)
        return run_cell(cell, inputs.paths, CONTEXT, ignore)

    return result_of


# ---- diagnostics -------------------------------------------------------------------------------------


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Make a method count its evaluations, and return their number as a diagnostic."""

    def install(method: type) -> None:
        evaluations: list[None] = []
        diagnostics = {
            "evaluations": lambda: float(len(evaluations)),
            "per_block": lambda: [len(evaluations) + 0.5, 0.25],
        }
        monkeypatch.setattr(method, "after_eval", lambda self, strategy: evaluations.append(None))
        monkeypatch.setattr(
            method, "diagnostics", lambda self: {name: value() for name, value in diagnostics.items()}
        )
        monkeypatch.setattr(method, "diagnostic_help", MEANINGS)

    return install


def diagnostics_of(*by_task: dict[str, Any]) -> dict[str, Diagnostic] | None:
    """The diagnostics in the record of a cell whose method returned these after its tasks."""
    measurements = Measurements("2025-01-31T12:00:00+00:00", diagnostics=[*by_task], diagnostic_help=MEANINGS)
    diagnostics: dict[str, Diagnostic] | None = results_of(measurements)["diagnostics"]
    return diagnostics


def test_diagnostics_are_read_after_each_evaluation(run: Any, count: Any) -> None:
    count(Ncm)
    assert run("ncm").record.diagnostics == {
        "evaluations": Diagnostic(meaning=MEANINGS["evaluations"], values=[1.0, 2.0, 3.0]),
        "per_block": Diagnostic(
            meaning=MEANINGS["per_block"], values=[[1.5, 0.25], [2.5, 0.25], [3.5, 0.25]]
        ),
    }


def test_diagnostics_are_read_after_tasks_without_an_evaluation_too(run: Any, count: Any) -> None:
    count(Joint)
    assert run("joint").record.diagnostics["evaluations"].values == [0.0, 0.0, 1.0]


def test_a_diagnostic_that_a_task_lacks_is_null() -> None:
    diagnostics = diagnostics_of({"evaluations": None}, {"evaluations": 1.0, "per_block": [0.5]}, {})
    assert diagnostics is not None
    assert diagnostics["evaluations"].values == [None, 1.0, None]
    assert diagnostics["per_block"].values == [None, [0.5], None]


def test_a_table_grows_with_the_tasks() -> None:
    last = [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]]
    values = [[[1.0]], None, last]
    assert diagnostics_of({"choices": [[1.0]]}, {}, {"choices": last}) == {
        "choices": Diagnostic(meaning=MEANINGS["choices"], values=values)
    }


def test_a_method_without_diagnostics_has_null(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnostics_of({}, {}, {}) is None
    monkeypatch.setattr(Ncm, "diagnostics", lambda self: {})
    record = run("ncm").record
    assert record.done
    assert record.diagnostics is None


NAN = float("nan")
WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nan": ([{"per_block": [1.0, NAN]}, {}, {}], "returns 'per_block' in a form that cannot"),
    "two kinds": ([{}, {"per_block": 1.0}, {"per_block": [1.0]}], "several kinds: a list of 1, a number"),
    "ragged": (
        [{}, {"choices": [[1.0], [0.5, 0.5]]}, {}],
        "the lines of the table have different lengths: 1, 2",
    ),
    "not tested yet": ([{"choices": [[1.0], [1.0]]}, {}, {}], "legal: at most 1"),
    "unexplained": ([{}, {}, {"fwt": 1.0}], "returns 'fwt', which its `diagnostic_help` does not explain"),
}


@pytest.mark.parametrize(("by_task", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_diagnostics_that_cannot_be_recorded_are_left_out_with_the_reason(
    by_task: list[dict[str, Any]], complaint: str
) -> None:
    usable = [{"evaluations": 1.0} | values for values in by_task]
    measurements = Measurements("2025-01-31T12:00:00+00:00", diagnostics=usable, diagnostic_help=MEANINGS)
    results = results_of(measurements)
    assert list(results["diagnostics"]) == ["evaluations"]
    ((quantity, reason),) = results["cost"].unmeasured.items()
    assert quantity.startswith("diagnostic ")
    assert complaint in reason


def test_the_complaint_says_what_a_method_may_return() -> None:
    measurements = Measurements("2025-01-31T12:00:00+00:00", diagnostics=[{"choices": "many"}])
    (reason,) = results_of(replace(measurements, diagnostic_help=MEANINGS))["cost"].unmeasured.values()
    assert "return a finite number, a list with one number per block, a table" in reason


def broken(*arguments: Any, **options: Any) -> NoReturn:
    raise AssertionError("Expected gradient function to be set")


#: What can fail beside training and evaluation, and what it leaves null.
FAULTS: dict[str, tuple[Any, str, set[str]]] = {
    "operations": (runner, "flops_of", {"flops", "plain_flops"}),
    "a copy for deployment": (Ncm, "merge", {"deployed"}),
    "energy": (runner, "counter_of", {"energy_joules"}),
    "sizes": (runner, "_sizes", {"stored"}),
    "diagnostics": (Ncm, "diagnostics", {"diagnostics"}),
}


@pytest.mark.parametrize(("owner", "name", "unmeasured"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_probe_costs_no_result(
    owner: Any, name: str, unmeasured: set[str], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("ncm").record
    monkeypatch.setattr(owner, name, broken)
    record = run("ncm", folder="again").record
    assert record.done
    assert record.correct == whole.correct
    assert set(record.cost.unmeasured) == unmeasured
    assert set(record.cost.unmeasured.values()) == {"AssertionError: Expected gradient function to be set"}


def test_a_diagnostic_that_a_checkpoint_cannot_hold_costs_no_result(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ncm, "diagnostics", lambda self: {"per_block": torch.ones(2)})
    monkeypatch.setattr(Ncm, "diagnostic_help", MEANINGS)
    record = run("ncm").record
    assert record.done
    assert record.diagnostics is None
    assert "Tensor is not JSON serializable" in record.cost.unmeasured["diagnostics"]


# ---- the backbone, and what batches are of ----------------------------------------------------------------


def test_what_is_trained_timed_and_compared_with_has_one_activation(tmp_path: Path) -> None:
    cell, inputs = plan_cell("ncm", tmp_path / "results", protocol_options={"gelu": "tanh"})
    run_cell(cell, inputs.paths, CONTEXT, ignore)
    models = [
        build_run(cell, inputs, ignore).strategy.model,
        plain_vit(cell, inputs),
        deployed_model(cell, inputs, 3).model,
    ]
    for model in models:
        assert {m.approximate for m in model.modules() if isinstance(m, torch.nn.GELU)} == {"tanh"}


def test_predictions_are_in_the_order_of_the_data_whatever_batches_are_of(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with `task` no batch has images of two tasks; after the second and the third task, some would."""
    batches: list[set[int]] = []
    monkeypatch.setattr(Ncm, "after_eval_iteration", lambda self, strategy: batches.append(_tasks(strategy)))
    mixed = run("ncm")
    assert max(map(len, batches)) > 1
    batches.clear()
    by_task = run("ncm", protocol_options={"test_batches": "task"})
    assert max(map(len, batches)) == 1
    assert by_task.predictions == mixed.predictions
    assert by_task.record.correct == mixed.record.correct


def _tasks(strategy: Any) -> set[int]:
    tasks: list[int] = strategy.model.head.experience_of[strategy.mb_y].tolist()
    return set(tasks)


@pytest.mark.parametrize(("size", "batch"), [(None, 128), (16, 128), (24, 120), (128, 128), (200, 200)])
def test_evaluation_batches_have_whole_groups(size: int | None, batch: int) -> None:
    method = DualPrompt() if size is None else DualPrompt(selection="batch", vote_size=size)
    assert eval_batch(method, 128) == batch


def test_the_baseline_of_memory_is_read_before_features_are_computed(
    run: Callable[..., CellResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What computing them leaves behind is used again in training: it would be missing from its peak."""
    order: list[str] = []
    tracker, keep = runner.PeakMemoryTracker, runner.keep_features
    monkeypatch.setattr(runner, "PeakMemoryTracker", lambda *a: order.append("baseline") or tracker(*a))
    monkeypatch.setattr(runner, "keep_features", lambda *a: order.append("features") or keep(*a))
    assert run("ncm").record.done
    assert order == ["baseline", "features"]


def test_measuring_what_is_deployed_leaves_the_random_numbers_of_the_training_alone() -> None:
    class Drawing(Finetune):
        def merge(self, model: Any) -> bool:
            torch.rand(3)
            return False

    strategy = SimpleNamespace(model=torch.nn.Linear(2, 2), device=torch.device("cpu"))
    before = torch.get_rng_state()
    deployed_copy(strategy, Drawing())  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


# ---- predictions -------------------------------------------------------------------------------------


def predictions_in(result: CellResult, folder: Path) -> Predictions:
    """The predictions of a result, written to disk and read as those of a stored record."""
    entry = result.record.predictions
    assert entry is not None
    assert result.predictions is not None
    folder.mkdir(exist_ok=True)
    (folder / entry.file).write_bytes(result.predictions)
    return predictions.read(entry, folder)


def correct_by_task(read: Predictions, record: Record) -> list[list[int | None]]:
    """`Record.correct`, computed from the predictions alone."""
    assert record.class_order is not None
    sizes = record.config["task_sizes"]
    task_of = {
        c: task
        for task, size in enumerate(sizes)
        for c in record.class_order[sum(sizes[:task]) : sum(sizes[:task]) + size]
    }
    tasks = np.array([task_of[c] for c in read.true.tolist()])
    return [
        [
            None if read.not_evaluated in row[tasks == task] else int((row == read.true)[tasks == task].sum())
            for task in range(record.tasks)
        ]
        for row in read.predicted
    ]


def test_the_record_names_its_classes_beside_their_numbers(run: Any) -> None:
    record = run("ncm").record
    assert record.class_names == [str(number) for number in record.class_order]  # the names of the digits


@pytest.mark.parametrize("method", ["ncm", "finetune", "joint"])
def test_predictions_agree_with_the_counts_of_the_record(method: str, run: Any, tmp_path: Path) -> None:
    result = run(method)
    read = predictions_in(result, tmp_path / "cell")
    assert correct_by_task(read, result.record) == result.record.correct
    assert len(read.true) == sum(result.record.counts)


def test_rows_and_classes_of_predictions_are_those_of_the_data_set(run: Any, tmp_path: Path) -> None:
    cell, inputs = plan_cell("ncm", tmp_path / "results")
    read = predictions_in(run("ncm"), tmp_path / "cell")
    test = inputs.dataset(cell).test
    assert read.rows.tolist() == sorted(set(read.rows.tolist()))
    assert read.rows.dtype == np.int32
    assert read.true.tolist() == test.labels[read.rows].tolist()
    evaluated = read.predicted[read.predicted != read.not_evaluated]
    assert set(evaluated.tolist()) <= set(range(10))


def test_on_validation_rows_are_those_of_the_training_images(run: Any, tmp_path: Path) -> None:
    cell, inputs = plan_cell("ncm", tmp_path / "results", eval_on="validation")
    read = predictions_in(run("ncm", eval_on="validation"), tmp_path / "cell")
    assert read.true.tolist() == inputs.dataset(cell).train.labels[read.rows].tolist()


def test_classes_that_are_not_learnt_yet_are_marked_and_never_predicted(run: Any, tmp_path: Path) -> None:
    result = run("ncm")
    read, order = predictions_in(result, tmp_path / "cell"), result.record.class_order
    ends = np.cumsum(result.record.config["task_sizes"]).tolist()
    for row, end in zip(read.predicted, ends, strict=True):
        learnt = np.isin(read.true, order[:end])
        assert set(row[~learnt].tolist()) <= {read.not_evaluated}
        assert set(row[learnt].tolist()) <= set(order[:end])


@pytest.mark.parametrize(("classes", "dtype"), [(10, np.uint16), (65_535, np.uint16), (65_536, np.int32)])
def test_the_type_of_predictions_holds_every_class_and_the_mark(classes: int, dtype: type) -> None:
    """Two tasks; the class order is reversed, so that the last class of the data set is learnt first."""
    split = Split(
        class_order=tuple(reversed(range(classes))),
        task_sizes=(1, classes - 1),
        domain_order=(),
        train_rows=np.arange(0),
        train_experience=np.arange(0),
        test_rows=np.array([4, 7]),
        test_experience=np.array([0, 1]),
        test_source="test",
        sha256="",
    )
    labels = np.array([0, classes - 1])
    after = {0: torch.tensor([0]), 1: torch.tensor([classes - 1, 0])}
    arrays = predictions_of(after, split, labels, "class-incremental")
    assert (arrays.predicted.dtype, arrays.true.dtype, arrays.rows.dtype) == (dtype, dtype, np.int32)
    assert arrays.rows.tolist() == [4, 7]
    assert arrays.true.tolist() == [classes - 1, 0]
    assert arrays.predicted.tolist() == [[classes - 1, np.iinfo(dtype).max], [0, classes - 1]]
    assert arrays.not_evaluated >= classes


# ---- costs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["finetune", "joint"])
def test_each_task_has_one_entry_of_costs(method: str, run: Any) -> None:
    cost = run(method).record.cost
    assert len(cost.experiences) == 3
    evaluated = [entry.eval_seconds is not None for entry in cost.experiences]
    assert evaluated == [method == "finetune"] * 2 + [True]
    assert all(entry.deployed > 0 and entry.flops > 0 for entry in cost.experiences)
    assert cost.plain_flops > 0
