"""Several processes on one machine: how many, with which threads and GPUs, and what comes back from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import bench.cores
from bench.cell.inputs import Inputs
from bench.cell.manifest import RunContext
from bench.cell.progress import ProgressUpdate
from bench.grid.executors import CellFinished, CellProgress
from bench.grid.executors.processes import ProcessExecutor, visible_gpus, worker_resources
from bench.grid.executors.serial import SerialExecutor
from bench.grid.executors.worker_process import DiedError, Resources, WorkerResult
from bench.spec import Device, Settings, settings_from
from methods.errors import UsageError
from tests.bench.grid.conftest import cells
from tests.bench.in_process import Done

CONTEXT = RunContext("python -m bench run", "processes", 2, 1)


def settings(**values: Any) -> Settings:
    grid = {"methods": ["ncm"], "benchmarks": ["digits"], "executor": "processes"}
    return settings_from({**grid, **values})


EXPECTED: dict[str, tuple[dict[str, Any], Device, tuple[int, int, tuple[str, ...]]]] = {
    "a core each": ({}, "cpu", (8, 1, ())),
    "their part of the threads": ({"workers": 3}, "cpu", (3, 2, ())),
    "more workers than cores": ({"workers": 9}, "cpu", (9, 1, ())),
    "threads as given": ({"workers": 3, "threads": 5}, "cpu", (3, 5, ())),
    "a GPU each": ({}, "cuda", (3, 2, ("0", "1", "2"))),
    "two per GPU": ({"workers": 6}, "cuda", (6, 1, ("0", "1", "2"))),
}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("case", EXPECTED)
def test_workers_threads_and_gpus(case: str, inputs: Inputs) -> None:
    values, device, (workers, threads, gpus) = EXPECTED[case]
    parallelism = ProcessExecutor.parallelism(settings(**values), device, 27)
    assert (parallelism.workers, parallelism.threads) == (workers, threads)
    context = replace(CONTEXT, workers=workers, threads=threads)
    with ProcessExecutor.open(settings(**values), device, inputs.paths, context) as executor:
        resources = list(executor.idle)
    assert len(resources) == workers
    assert {each.threads for each in resources} == {threads}
    assert tuple(dict.fromkeys(each.gpu for each in resources if each.gpu)) == gpus


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("quota", "workers", "threads"), [(2.0, 2, 1), (5.5, 5, 1), (0.5, 1, 1), (99.0, 8, 1)]
)
def test_a_container_has_the_cores_of_its_quota(
    quota: float, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.cores, "cpu_quota", lambda: quota)
    parallelism = ProcessExecutor.parallelism(settings(), "cpu", 27)
    assert (parallelism.workers, parallelism.threads) == (workers, threads)
    serial = SerialExecutor.parallelism(settings(executor="serial"), "cpu", 27)
    assert serial.threads == workers


@pytest.mark.usefixtures("machine")
def test_gpus_are_those_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == ("0", "1", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-ab12")
    assert visible_gpus() == ("5", "GPU-ab12")


def test_workers_take_the_gpus_in_turn() -> None:
    assert worker_resources("cuda", 3, 2, ("5", "7")) == [
        Resources("cuda", 2, gpu) for gpu in ("5", "7", "5")
    ]
    assert worker_resources("cpu", 2, 4, ()) == [Resources("cpu", 4)] * 2
    assert worker_resources("cuda", 1, 4, ()) == [Resources("cuda", 4)]


@pytest.mark.usefixtures("machine")
def test_the_description_says_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    parallelism = ProcessExecutor.parallelism(settings(workers=2, threads=1), "cuda", 27)
    assert parallelism.description == (
        "processes, on this machine: 2 at a time, each with 1 thread on cuda, GPUs 0, 1 in turn"
    )
    parallelism = ProcessExecutor.parallelism(settings(workers=2), "cpu", 27)
    assert parallelism.description == ("processes, on this machine: 2 at a time, each with 4 threads on cpu")


def test_the_address_of_a_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match="ray_address is set, but the executor is processes; use --executor"):
        ProcessExecutor.check(settings(ray_address="auto"))
    ProcessExecutor.check(settings(workers=7))


# ---- running cells -------------------------------------------------------------------------------


@pytest.fixture
def executor_of(inputs: Inputs) -> Callable[..., ProcessExecutor]:
    """An executor with two workers, whose cells `start` runs."""
    resources = [Resources("cpu", 1), Resources("cpu", 2)]
    return lambda start: ProcessExecutor(resources, inputs.paths, CONTEXT, 60.0, start)


def test_a_worker_is_occupied_until_its_cell_has_ended(
    executor_of: Callable[..., ProcessExecutor], inputs: Inputs
) -> None:
    resources: list[Resources] = []
    update = ProgressUpdate("learning", 1, 5)

    def start(function: Any, *arguments: Any, **options: Any) -> Done:
        resources.append(options["resources"])
        assert options["seconds"] == 60.0
        return Done(lambda observe: observe(update) or arguments[0].method.label, **options)

    executor = executor_of(start)
    first, second, third = (item.cell for item in cells(inputs, "ncm", "finetune", "joint"))
    executor.submit(first)
    assert executor.has_capacity()
    executor.submit(second)
    assert not executor.has_capacity()
    assert executor.poll(0.0) == [
        CellProgress(first, update),
        CellFinished(first, "ncm"),  # type: ignore[arg-type]
        CellProgress(second, update),
        CellFinished(second, "finetune"),  # type: ignore[arg-type]
    ]
    assert executor.has_capacity()
    executor.submit(third)
    assert resources == [Resources("cpu", 1), Resources("cpu", 2), Resources("cpu", 1)]
    assert executor.poll(0.0)[-1] == CellFinished(third, "joint")  # type: ignore[arg-type]
    assert executor.poll(0.0) == []


def test_a_process_that_cannot_be_started_is_the_end_of_its_cell_only(
    executor_of: Callable[..., ProcessExecutor], inputs: Inputs
) -> None:
    def start(*arguments: Any, **options: Any) -> Done:
        raise BlockingIOError(11, os.strerror(11))

    executor = executor_of(start)
    (item,) = cells(inputs, "ncm")
    executor.submit(item.cell)
    assert executor.has_capacity()
    (event,) = executor.poll(0.0)
    assert isinstance(event, CellFinished)
    assert isinstance(event.error, DiedError)
    assert "its process could not be started (BlockingIOError: [Errno 11] Resource" in str(event.error)
    assert executor.poll(0.0) == []


def test_a_cell_that_was_stopped_by_its_time_limit_is_marked(
    executor_of: Callable[..., ProcessExecutor], inputs: Inputs
) -> None:
    class TimedOut(Done):
        timed_out = True

    executor = executor_of(lambda *arguments, **options: TimedOut(lambda observe: None, **options))
    (item,) = cells(inputs, "ncm")
    executor.submit(item.cell)
    assert executor.poll(0.0) == [CellFinished(item.cell, timed_out=True)]


def test_stop_and_kill_reach_every_worker(
    executor_of: Callable[..., ProcessExecutor], inputs: Inputs
) -> None:
    calls: list[str] = []

    class Busy(Done):
        def poll(self, observe: Any) -> WorkerResult | None:  # type: ignore[override]
            return None

        def stop(self) -> None:
            calls.append("stop")

        def kill(self) -> None:
            calls.append("kill")

    executor = executor_of(lambda *arguments, **options: Busy(lambda observe: None, **options))
    for item in cells(inputs, "ncm", "finetune"):
        executor.submit(item.cell)
    assert executor.poll(0.0) == []
    executor.stop()
    executor.kill()
    assert calls == ["stop", "stop", "kill", "kill"]
