"""Ray for real: two nodes on this machine, one of them lost in the middle; and what comes back from afar."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bench.test_resume import numbers

from bench.cell.backbone import MICRO_NAME
from bench.cell.checkpoint import State, kept, load, save
from bench.cell.manifest import RunContext
from bench.grid.executors import ray_cluster, spread
from bench.grid.executors.ray_cluster import RETRIES, RayExecutor, states_in, write_states
from bench.grid.executors.spread import Spread
from bench.grid.plan import Paths, plan
from bench.grid.stopping import Stop
from bench.record import RECORD_NAME, Record, read
from bench.spec import settings_from
from methods.errors import UsageError

ROOT = Path(__file__).parents[2]
METHODS = "finetune,inflora,ncm"
GRID = ("--methods", METHODS, "--scale", "smoke", "--seeds", "0", "--tasks", "3", "--weights", "random")
GRID += ("--threads", "1", "--set", "protocol.epochs=8")

#: Without a token of another cluster, and quick to find out that a node is lost.
RAY_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def command(results: Path, *more: str) -> subprocess.Popen[str]:
    """The grid, as a user starts it."""
    arguments = [sys.executable, "-m", "bench", "run", *GRID, "--results", str(results), *more]
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=os.environ | RAY_SETTINGS | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a command printed, once it has ended well."""
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def records(results: Path) -> dict[str, Record]:
    return {record.method: record for record in map(read, results.glob(f"*/{RECORD_NAME}"))}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """The records that every executor has to give."""
    folder = tmp_path_factory.mktemp("serial") / "results"
    finished(command(folder))
    return records(folder)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of one node; a test adds more."""
    for name, value in RAY_SETTINGS.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


def wait_for(seen: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What is seen, as soon as there is something, while the process runs."""
    while not (found := seen()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    return found


def test_a_node_that_is_lost_takes_no_cell_with_it(
    cluster: Any, serial: dict[str, Record], tmp_path: Path
) -> None:
    lost = cluster.add_node(num_cpus=1)
    results = tmp_path / "results"
    process = command(results, "--executor", "ray", "--ray-address", cluster.address)
    wait_for(lambda: len(list(results.glob("*/states/*.safetensors"))) > 1, process)
    cluster.remove_node(lost, allow_graceful=False)
    out = finished(process)
    found = records(results)
    assert {name: numbers(record) for name, record in found.items()} == {
        name: numbers(record) for name, record in serial.items()
    }
    assert all(record.cost and record.cost.latency for record in found.values())
    taken_up = [name for name, record in found.items() if record.manifest.resumed]
    assert len(taken_up) == 1
    assert "it goes on after experience" in out
    assert {record.manifest.executor for record in found.values()} == {"ray"}
    assert not list(results.rglob("*.safetensors"))
    assert not list(results.rglob("*.here"))


def test_processes_give_the_records_that_serial_gives(serial: dict[str, Record], tmp_path: Path) -> None:
    finished(command(tmp_path / "results", "--executor", "processes", "--workers", "2"))
    found = records(tmp_path / "results")
    assert {name: numbers(record) for name, record in found.items()} == {
        name: numbers(record) for name, record in serial.items()
    }
    assert {(r.manifest.executor, r.manifest.workers, r.manifest.threads) for r in found.values()} == {
        ("processes", 2, 1)
    }


# ---- its parts -------------------------------------------------------------------------------------

PLACES = Paths((), None, Path("results"))
HOW = RunContext("python -m bench run", "ray", None, 1)


def ncm() -> Any:
    given = {"methods": ["ncm"], "benchmarks": ["digits"], "seeds": [0], "backbone": MICRO_NAME}
    (planned,) = plan(settings_from(given), skip_missing=False)
    return planned


def a_crew(threads: int = 2, device: Any = "cpu") -> RayExecutor:
    """A crew that is connected to nothing."""
    executor = object.__new__(RayExecutor)
    executor.spread = Spread("ray", device, None, threads)
    executor.requested = {"num_cpus": threads, "num_gpus": 1 if device == "cuda" else 0}
    executor.refs = {}
    return executor


class FakeRay:
    def __init__(self, *nodes: dict[str, Any]) -> None:
        self.there = nodes

    def nodes(self) -> list[dict[str, Any]]:
        return list(self.there)


@pytest.mark.parametrize(
    ("threads", "device", "room"),
    [(1, "cpu", 11), (2, "cpu", 5), (4, "cpu", 2), (1, "cuda", 2), (8, "cuda", 1)],
)
def test_room_is_what_fits_on_the_nodes_that_live(threads: int, device: str, has_capacity: int) -> None:
    executor = a_crew(threads, device)
    executor.ray = FakeRay(
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    )
    assert executor._capacity() == has_capacity


def test_where_nothing_fits_one_cell_waits_for_a_node_to_join() -> None:
    executor = a_crew(64)
    executor.ray = FakeRay({"Alive": True, "Resources": {"CPU": 8.0}})
    assert executor.has_capacity()
    assert "no node of the cluster has 64 CPUs at present; it waits for one to join" in executor._no_room()
    executor.refs = {"ref": ncm().cell}
    assert not executor.has_capacity()


@pytest.mark.parametrize(("at_once", "forces"), [(False, [False]), (True, [False, True])])
def test_a_measurement_is_cancelled_once_and_by_force_only_if_at_once(
    immediate: bool, forces: list[bool]
) -> None:
    """A task that is cancelled twice would take it for a second Ctrl-C, and not end well."""
    forced: list[bool] = []

    class Slow(FakeRay):
        looks = 0

        def cancel(self, ref: str, force: bool = False) -> None:
            forced.append(force)

        def wait(self, refs: list[str], timeout: float) -> tuple[list[str], list[str]]:
            self.looks += 1
            ends = forced[-1] if immediate else self.looks > 4
            return (refs, []) if ends else ([], refs)

    executor = a_crew()
    executor.ray = Slow()
    executor._end("ref", Stop(requested=True, immediate=immediate))
    assert forced == forces


def test_states_travel_whole(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    save(State({}, {"said": 1}), tmp_path / "here" / "cell", 1)
    save(State({}, {"said": 2}), tmp_path / "here" / "cell", 2)
    write_states(tmp_path / "there" / "cell", states_in(tmp_path / "here" / "cell"))
    assert [load(path).notes["said"] for path in kept(tmp_path / "there" / "cell").values()] == [1, 2]
    save(State({}, {"said": 3}), tmp_path / "here" / "cell", 2)
    write_states(tmp_path / "there" / "cell", states_in(tmp_path / "here" / "cell"))
    assert [load(path).notes["said"] for path in kept(tmp_path / "there" / "cell").values()] == [1, 3]
    assert len(list((tmp_path / "there" / "cell" / "states").iterdir())) == 2


class Local:
    """In place of a handle of Ray's: calls at once."""

    def __init__(self, work: Any) -> None:
        self.remote = work


class LocalBoard:
    def __init__(self, before: int) -> None:
        self.begun, self.told = before, []
        self.begin, self.notify = Local(self._begin), Local(lambda cell, news: self.told.append(news))

    def _begin(self, cell: str) -> int:
        self.begun += 1
        return self.begun


@pytest.fixture
def without_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "get", lambda given, timeout=None: given)


def run_here(tmp_path: Path, token: Path, *, before: int = 0, code: str | None = None, sent: Any = ()) -> Any:
    """The task of a cell, on this machine."""
    planned = ncm()
    own = ray_cluster.code_sha256(ray_cluster.METHODS["ncm"].load())
    paths = Paths((), None, tmp_path / "results")
    share, board = ray_cluster.Resources("cpu", 1), LocalBoard(before)
    return ray_cluster.run_task(planned, paths, HOW, share, None, token, code or own, board, sent)


@pytest.mark.usefixtures("without_cluster")
def test_a_machine_that_does_not_see_the_results_folder_sends_its_states(tmp_path: Path) -> None:
    back = run_here(tmp_path, tmp_path / "results" / "unseen.here")
    assert back.ended.record.done
    assert [name.partition(".")[0] for name in sorted(back.states)] == ["1", "5"]
    assert not (tmp_path / "results").exists()
    cell = ncm().cell
    only_first = {name: content for name, content in back.states.items() if name.startswith("1.")}
    again = run_here(tmp_path, tmp_path / "unseen.here", sent=[{cell.id: only_first}])
    assert again.ended.record.manifest.resumed == [1]
    assert numbers(again.ended.record) == numbers(back.ended.record)


@pytest.mark.usefixtures("without_cluster")
def test_a_machine_that_sees_the_results_folder_keeps_its_states_there(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "seen.here").touch()
    back = run_here(tmp_path, tmp_path / "results" / "seen.here")
    assert back.states == {}
    assert list(kept(tmp_path / "results" / ncm().cell.id)) == [1, 5]


@pytest.mark.usefixtures("without_cluster")
def test_a_machine_with_other_code_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has other code than the one that started the grid"):
        run_here(tmp_path, tmp_path / "unseen.here", code="0" * 64)


@pytest.mark.usefixtures("without_cluster")
def test_a_cell_that_takes_its_machines_down_is_given_up(tmp_path: Path) -> None:
    back = run_here(tmp_path, tmp_path / "unseen.here", before=RETRIES + 1)
    assert f"was lost {RETRIES + 1} times" in str(back.error)


def test_where_there_is_no_cluster_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    def refused(**settings: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "init", refused)
    with (
        pytest.raises(
            UsageError, match=r"cannot use Ray at auto.*Could not find any running Ray instance.*ray start"
        ),
        ray_cluster.open_ray(Spread("ray", "cpu", None, 1, address="auto"), PLACES, HOW, None),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r"pip install 'duallora-bench\[ray\]'"),
        spread.open_executor(Spread("ray", "cpu", None, 1), PLACES, "run", None),
    ):
        pass


def test_nobody_at_the_address_is_told_at_once() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(UsageError, match=f"cannot use Ray at {address} .*refused"),
            ray_cluster.open_ray(Spread("ray", "cpu", None, 1, address=address), PLACES, HOW, None),
        ):
            pass
