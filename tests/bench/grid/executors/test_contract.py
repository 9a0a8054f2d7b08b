"""Every registered executor keeps the contract, and one of another package runs a grid like them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bench.grid.executors
from bench.cell.inputs import Inputs
from bench.cell.manifest import RunContext
from bench.cli import main
from bench.grid.executors import EXECUTORS, Executor, ExecutorClass, Parallelism
from bench.predictions import PATTERN
from bench.record import Record
from bench.spec import Settings, settings_from
from methods.errors import UsageError
from methods.registry import Registry
from tests.bench.cell.test_resume import numbers
from tests.bench.grid.executors.conftest import RAY_SETTINGS, output_of, records_in, start_grid

TINY = ("--methods", "ncm,joint", "--scale", "smoke", "--seeds", "0", "--tasks", "3", "--weights", "random")

every_executor = pytest.mark.parametrize("name", list(EXECUTORS))


def settings(name: str, **values: Any) -> Settings:
    return settings_from({"methods": ["ncm"], "benchmarks": ["digits"], "executor": name, **values})


def class_of(name: str) -> ExecutorClass:
    executor: ExecutorClass = EXECUTORS[name].load()
    return executor


def test_the_executors_of_this_project_are_registered_with_a_summary() -> None:
    assert set(EXECUTORS) >= {"auto", "serial", "processes", "ray"}
    assert all(entry.summary.startswith("Cells on ") for entry in EXECUTORS.values())


@every_executor
def test_the_default_settings_suit(name: str) -> None:
    class_of(name).check(settings(name))
    assert isinstance(class_of(name).remote, bool)


@every_executor
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("machine")
def test_parallelism_is_that_of_the_settings_and_is_described(name: str, device: Any) -> None:
    chosen = {"threads": 3} | ({} if name == "serial" else {"workers": 2})
    parallelism = class_of(name).parallelism(settings(name, **chosen), device, 27)
    assert parallelism == Parallelism(chosen.get("workers", 1), 3, parallelism.description)
    assert parallelism.description.startswith(f"{name}, on ")
    assert "3 threads" in parallelism.description
    assert device in parallelism.description


@every_executor
def test_an_executor_that_was_opened_is_idle_and_answers_at_once(
    name: str, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in RAY_SETTINGS.items():
        monkeypatch.setenv(variable, value)
    one_thread = settings(name, threads=1)
    parallelism = class_of(name).parallelism(one_thread, "cpu", 27)
    context = RunContext("python -m bench run", name, parallelism.workers, parallelism.threads)
    with class_of(name).open(one_thread, "cpu", inputs.paths, context) as executor:
        assert executor.has_capacity()
        assert list(executor.poll(0.0)) == []
        executor.stop()
        executor.kill()
        assert executor.has_capacity()
    assert [path for path in inputs.paths.results.rglob("*") if path.is_file()] == []


def test_processes_give_the_records_that_serial_gives(
    serial_records: dict[str, Record], tmp_path: Path
) -> None:
    output_of(start_grid(tmp_path / "results", "--executor", "processes", "--workers", "2"))
    records = records_in(tmp_path / "results")
    assert {name: numbers(record) for name, record in records.items()} == {
        name: numbers(record) for name, record in serial_records.items()
    }
    assert {(r.manifest.executor, r.manifest.workers, r.manifest.threads) for r in records.values()} == {
        ("processes", 2, 1)
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "proceses",
            r"unknown executor 'proceses'; did you mean 'processes'\? Legal: auto, processes, ray, serial",
        ),
        ("slurm", r"unknown executor 'slurm'\. Legal: auto, processes, ray, serial"),
    ],
)
def test_an_unknown_name_is_answered_by_the_nearest_and_all_legal_ones(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EXECUTORS[name]


# ---- of another package --------------------------------------------------------------------------

MODULE = '''
"""Runs cells in the command's own process."""

from contextlib import contextmanager

from bench.cell.progress import ignore
from bench.cell.runner import run_cell
from bench.grid.executors import CellFinished, Parallelism
from bench.grid.executors.worker_process import Resources
from bench.grid.sessions import run_session


class Inline:
    remote = False

    @classmethod
    def check(cls, settings):
        pass

    @classmethod
    def parallelism(cls, settings, device, cells):
        return Parallelism(1, 1, "inline, on this machine: in the process of the command")

    @classmethod
    @contextmanager
    def open(cls, settings, device, paths, context):
        yield cls(paths, context)

    def __init__(self, paths, context):
        self.paths, self.context, self.events = paths, context, []

    def has_capacity(self):
        return not self.events

    def submit(self, cell):
        result = run_cell(cell, self.paths, self.context, ignore)
        self.events.append(CellFinished(cell, result))

    def poll(self, seconds):
        events, self.events = self.events, []
        return events

    def stop(self):
        pass

    def kill(self):
        pass

    def measure_inference(self, cells, observe, stop):
        options = {"batches": {"cpu": (1, 2)}, "run": run_inline}
        return run_session(cells, self.paths, Resources("cpu"), observe, stop, **options)


def run_inline(function, *arguments, resources, observe, stop):
    return function(*arguments, observe)
'''


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry as it is after another package was installed, as `pip install` would."""
    site = tmp_path / "site"
    metadata = site / "inline-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "inline_executor.py").write_text(MODULE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: inline\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[duallora_bench.executors]\ninline = inline_executor:Inline\n"
    )
    monkeypatch.syspath_prepend(site)
    folder = Path(bench.grid.executors.__file__).parent
    return Registry("executor", "bench.grid.executors", folder, EXECUTORS.group)


def test_an_executor_of_another_package_runs_a_grid(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert main(["run", *TINY, "--results", str(results), "--executor", "inline"], registry) == 0
    out = capsys.readouterr().out
    assert "inline, on this machine: in the process of the command" in out
    records = records_in(results)
    assert set(records) == {"ncm", "joint"}
    for record in records.values():
        assert record.done
        assert record.manifest.executor == "inline"
        assert record.cost is not None
        assert record.cost.latency is not None
    assert len(list(results.glob(f"*/{PATTERN}"))) == 2


def test_an_executor_of_another_package_is_found_beside_the_others(registry: Registry) -> None:
    assert set(registry) == {*EXECUTORS, "inline"}
    assert registry["inline"].summary == "from inline"
    with pytest.raises(UsageError, match="did you mean 'inline'"):
        registry["inlin"]


@every_executor
@pytest.mark.parametrize("method", ["has_capacity", "submit", "poll", "stop", "kill", "measure_inference"])
def test_a_class_has_every_method_of_an_executor(name: str, method: str) -> None:
    cls: Callable[..., Executor] = EXECUTORS[name].load()
    assert callable(getattr(cls, method))
    assert callable(getattr(Executor, method))
