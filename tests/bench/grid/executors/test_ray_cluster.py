"""Ray for real: two nodes on this machine, one of them lost; and the parts, without a cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from bench.cell import checkpoint
from bench.cell.checkpoint import Checkpoint, list_checkpoints, load, save
from bench.cell.inputs import Inputs
from bench.cell.manifest import RunContext, code_sha256
from bench.cell.progress import Message, Notice, ignore
from bench.grid.executors import CellProgress
from bench.grid.executors.ray_cluster import (
    RETRIES,
    ProgressActor,
    RayExecutor,
    TaskResult,
    read_checkpoints,
    run_task,
    write_checkpoints,
)
from bench.grid.executors.worker_process import Resources
from bench.grid.stopping import Stop
from bench.record import Record
from bench.spec import Cell, Settings, settings_from
from methods.errors import UsageError
from methods.registry import METHODS
from tests.bench.cell.test_resume import numbers
from tests.bench.grid.conftest import cells
from tests.bench.grid.executors.conftest import RAY_SETTINGS, output_of, records_in, start_grid

CONTEXT = RunContext("python -m bench run", "ray", None, 1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of one node; a test adds more."""
    for name, value in RAY_SETTINGS.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until a condition holds, while the process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_a_node_that_is_lost_takes_no_cell_with_it(
    cluster: Any, serial_records: dict[str, Record], tmp_path: Path
) -> None:
    lost = cluster.add_node(num_cpus=1)
    results = tmp_path / "results"
    process = start_grid(results, "--executor", "ray", "--ray-address", cluster.address)
    wait_for(lambda: len(list(results.glob(f"*/{checkpoint.FOLDER}/*.safetensors"))) > 1, process)
    cluster.remove_node(lost, allow_graceful=False)
    out = output_of(process)
    records = records_in(results)
    assert {name: numbers(record) for name, record in records.items()} == {
        name: numbers(record) for name, record in serial_records.items()
    }
    assert all(record.cost and record.cost.latency for record in records.values())
    resumed = [name for name, record in records.items() if record.manifest.resumed]
    assert len(resumed) == 1, out  # messages may be lost with a node; the record tells
    assert {record.manifest.executor for record in records.values()} == {"ray"}
    assert not list(results.glob(f"*/{checkpoint.FOLDER}"))
    assert not list(results.rglob("*.here"))


# ---- before it is opened -------------------------------------------------------------------------


def settings(**values: Any) -> Settings:
    grid = {"methods": ["ncm"], "benchmarks": ["digits"], "executor": "ray"}
    return settings_from({**grid, **values})


DESCRIPTIONS: dict[str, tuple[dict[str, Any], Any, tuple[int | None, int]]] = {
    "ray, on a Ray started on this machine: as many cells at a time as there is room for, "
    "each with 1 thread on cpu": ({}, "cpu", (None, 1)),
    "ray, on the Ray cluster at head:6379: as many cells at a time as there is room for, "
    "each with 4 threads and a GPU on cuda": (
        {"ray_address": "head:6379", "threads": 4},
        "cuda",
        (None, 4),
    ),
    "ray, on a Ray started on this machine: 2 at a time, each with 1 thread on cpu": (
        {"workers": 2},
        "cpu",
        (2, 1),
    ),
    "ray, on a Ray started on this machine: 4 at a time, each with 2 threads and a GPU on cuda": (
        {"workers": 4, "threads": 2},
        "cuda",
        (4, 2),
    ),
}


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_the_description_says_what_runs_where(text: str) -> None:
    values, device, (workers, threads) = DESCRIPTIONS[text]
    RayExecutor.check(settings(**values))
    parallelism = RayExecutor.parallelism(settings(**values), device, 27)
    assert parallelism.description == text
    assert (parallelism.workers, parallelism.threads) == (workers, threads)


def test_where_there_is_no_cluster_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, inputs: Inputs
) -> None:
    import ray

    def refused(**options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray, "init", refused)
    with (
        pytest.raises(
            UsageError, match=r"cannot use Ray at auto.*Could not find any running Ray instance.*ray start"
        ),
        RayExecutor.open(settings(ray_address="auto"), "cpu", inputs.paths, CONTEXT),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r"pip install 'duallora-bench\[ray\]'"),
        RayExecutor.open(settings(), "cpu", inputs.paths, CONTEXT),
    ):
        pass


def test_an_address_where_nothing_listens_is_refused_at_once(inputs: Inputs) -> None:
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with (
            pytest.raises(UsageError, match=f"cannot use Ray at {address} .*refused"),
            RayExecutor.open(settings(ray_address=address), "cpu", inputs.paths, CONTEXT),
        ):
            pass


# ---- the executor, without a cluster -------------------------------------------------------------


def executor_on(
    inputs: Inputs,
    *nodes: dict[str, Any],
    threads: int = 2,
    device: Any = "cpu",
    max_cells: int | None = None,
) -> RayExecutor:
    """An executor on a stand-in for Ray with these nodes, whose tasks never end."""
    ray = MagicMock()
    ray.nodes.return_value = list(nodes)
    ray.wait.return_value = ([], [])
    token = inputs.paths.results / "token.here"
    return RayExecutor(ray, Resources(device, threads), max_cells, inputs.paths, CONTEXT, None, token)


@pytest.mark.parametrize(
    ("threads", "device", "capacity"),
    [(1, "cpu", 11), (2, "cpu", 5), (4, "cpu", 2), (1, "cuda", 2), (8, "cuda", 1)],
)
def test_capacity_is_what_fits_on_the_nodes_that_are_alive(
    threads: int, device: str, capacity: int, inputs: Inputs
) -> None:
    nodes = (
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    )
    assert executor_on(inputs, *nodes, threads=threads, device=device).capacity() == capacity


def test_where_nothing_fits_one_cell_waits_for_a_node_to_join(inputs: Inputs) -> None:
    executor = executor_on(inputs, {"Alive": True, "Resources": {"CPU": 8.0}}, threads=64)
    (item,) = cells(inputs, "ncm")
    assert executor.has_capacity()
    executor.submit(item.cell)
    assert not executor.has_capacity()
    (event,) = executor.poll(0.0)
    assert isinstance(event, CellProgress)
    assert isinstance(event.message, Notice)
    assert (
        "no node of the cluster has 64 CPUs at present; the cell waits for one to join" in event.message.text
    )
    assert executor.poll(0.0) == []


def test_workers_limit_the_cells_at_a_time(inputs: Inputs) -> None:
    executor = executor_on(inputs, {"Alive": True, "Resources": {"CPU": 8.0}}, max_cells=1)
    (item,) = cells(inputs, "ncm")
    executor.submit(item.cell)
    assert not executor.has_capacity()


@pytest.mark.parametrize(("immediate", "forced"), [(False, [False]), (True, [False, True])])
def test_a_measurement_is_cancelled_once_and_by_force_only_if_at_once(
    immediate: bool, forced: list[bool], inputs: Inputs
) -> None:
    """Ray takes a second cancel for a forced kill, and the task would not end well."""
    cancels: list[bool] = []
    checks: list[float] = []

    def cancel(ref: object, force: bool = False) -> None:
        cancels.append(force)

    def wait(refs: list[object], timeout: float) -> tuple[list[object], list[object]]:
        checks.append(timeout)
        ended = cancels[-1] if immediate else len(checks) > 4
        return (refs, []) if ended else ([], refs)

    executor = executor_on(inputs)
    executor.ray.cancel, executor.ray.wait = cancel, wait
    (item,) = cells(inputs, "ncm")
    with pytest.raises(KeyboardInterrupt):
        executor.measure_inference([item.cell], ignore, Stop(requested=True, immediate=immediate))
    assert cancels == forced


def test_checkpoints_are_sent_whole_and_replace_older_ones(tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "cell", tmp_path / "there" / "cell"
    here.parent.mkdir()
    there.parent.mkdir()
    save(Checkpoint({}, {"number": 1}), here, 1)
    save(Checkpoint({}, {"number": 2}), here, 2)
    write_checkpoints(there, read_checkpoints(here))
    assert [load(path).notes["number"] for path in list_checkpoints(there).values()] == [1, 2]
    save(Checkpoint({}, {"number": 3}), here, 2)
    write_checkpoints(there, read_checkpoints(here))
    assert [load(path).notes["number"] for path in list_checkpoints(there).values()] == [1, 3]
    assert len(list((there / checkpoint.FOLDER).iterdir())) == 2


def test_the_actor_counts_starts_and_returns_each_message_once() -> None:
    actor = ProgressActor()
    assert [actor.count_start("a"), actor.count_start("b"), actor.count_start("a")] == [1, 1, 2]
    actor.add("a", Notice("one"))
    actor.add("b", Notice("two"))
    assert actor.take_all() == [("a", Notice("one")), ("b", Notice("two"))]
    assert actor.take_all() == []


# ---- a task, on this machine ---------------------------------------------------------------------


class LocalMethod:
    """In place of a method of a Ray actor: called at once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class LocalActor:
    """In place of the handle of a `ProgressActor`; the cell was started so many times before."""

    def __init__(self, starts: int) -> None:
        self.messages: list[Message] = []
        self.count_start = LocalMethod(lambda cell: starts + 1)
        self.add = LocalMethod(lambda cell, message: self.messages.append(message))


@pytest.fixture
def task(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TaskResult]:
    """Run the task of a cell on this machine; what Ray would fetch is passed as it is."""
    import ray

    monkeypatch.setattr(ray, "get", lambda ref, timeout=None: ref)

    def run(
        cell: Cell, token: Path, *, starts: int = 0, code: str | None = None, checkpoints: Any = ()
    ) -> TaskResult:
        code = code or code_sha256(METHODS[cell.method.name].load())
        resources, actor = Resources("cpu", 1), LocalActor(starts)
        return run_task(cell, inputs.paths, CONTEXT, resources, None, token, code, actor, checkpoints)

    return run


@pytest.fixture
def cell(inputs: Inputs) -> Cell:
    (item,) = cells(inputs, "ncm", scale="smoke")
    return item.cell


def test_a_machine_that_does_not_see_the_results_folder_sends_its_checkpoints(
    task: Callable[..., TaskResult], cell: Cell, inputs: Inputs
) -> None:
    token = inputs.paths.results / "unseen.here"
    first = task(cell, token)
    assert first.result is not None
    assert first.result.record.done
    assert first.result.predictions is not None
    assert [name.partition(".")[0] for name in sorted(first.checkpoints)] == ["1", "5"]
    assert list(inputs.paths.results.iterdir()) == []
    after_one = {name: content for name, content in first.checkpoints.items() if name.startswith("1.")}
    second = task(cell, token, checkpoints=[{cell.id: after_one}])
    assert second.result is not None
    assert second.result.record.manifest.resumed == [1]
    assert numbers(second.result.record) == numbers(first.result.record)
    assert second.result.predictions == first.result.predictions


def test_a_machine_that_sees_the_results_folder_keeps_its_checkpoints_there(
    task: Callable[..., TaskResult], cell: Cell, inputs: Inputs
) -> None:
    token = inputs.paths.results / "seen.here"
    token.touch()
    assert task(cell, token).checkpoints == {}
    assert list(list_checkpoints(inputs.paths.results / cell.id)) == [1, 5]


def test_a_machine_with_other_code_is_refused(task: Callable[..., TaskResult], cell: Cell) -> None:
    with pytest.raises(UsageError, match="runs other code than the machine that started the grid"):
        task(cell, Path("unseen.here"), code="0" * 64)


def test_a_cell_whose_machines_were_lost_too_often_is_given_up(
    task: Callable[..., TaskResult], cell: Cell
) -> None:
    outcome = task(cell, Path("unseen.here"), starts=RETRIES + 1)
    assert f"was lost {RETRIES + 1} times" in str(outcome.error)
