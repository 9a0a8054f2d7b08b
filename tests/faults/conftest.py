"""A folder to run commands in, what uninterrupted commands give, and the table of all faults."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.faults.commands import (
    CODE,
    Command,
    Result,
    check_predictions,
    done_files,
    facts,
    grid_of,
    on_disk,
    record_of,
)

Drill = Callable[[str, str, str], None]
Start = Callable[..., Command]
Run = Callable[..., Result]

ROWS = pytest.StashKey[list[tuple[str, str, str]]]()
HEAD = ("fault", "how often", "what is on disk afterwards", "what the next command does")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What every command finds: this code, one thread, no data, no home. Sockets need a short path."""
    home = tmp_path_factory.mktemp("home")
    short = tempfile.mkdtemp(prefix="faults-", dir="/tmp")
    yield {
        "PYTHONPATH": str(CODE),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "HOME": str(home),
        "DUALLORA_BENCH_DATA": str(home / "data"),
        "TMPDIR": short,
    }
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands of a test run; what they print lies beside it."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def start(folder: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start a command; it is gone when the test is."""
    started: list[Command] = []

    def start(*arguments: str, **more: Any) -> Command:
        more = {"environment": environment, "folder": folder, **more}
        started.append(Command(more.pop("folder"), *arguments, **more))
        return started[-1]

    yield start
    for command in started:
        command.end()


@pytest.fixture
def run(start: Start) -> Run:
    """Run a command to its end."""
    return lambda *arguments, **more: start(*arguments, **more).result()


@dataclass(frozen=True)
class Whole:
    """What a grid gives that nothing happens to: facts by method, seconds, its results folder."""

    facts: dict[str, dict[str, Any]]
    seconds: float
    results: Path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Callable[[str], Whole]:
    """Of a grid of some methods; run once a session."""
    return cache(lambda methods: _run_whole(tmp_path_factory.mktemp("whole"), methods, environment))


def _run_whole(folder: Path, methods: str, environment: dict[str, str]) -> Whole:
    began, names = time.monotonic(), methods.split(",")
    result, results = _run(folder, methods, environment)
    seconds = time.monotonic() - began
    assert result.status == 0, result.output
    assert on_disk(results) == done_files(*names)
    check_predictions(results)
    assert all(record_of(results, name).cost.latency for name in names)
    return Whole({name: facts(record_of(results, name)) for name in names}, seconds, results)


def _run(
    folder: Path,
    methods: str,
    environment: dict[str, str],
    meanwhile: Callable[[Command], None] = lambda command: None,
) -> tuple[Result, Path]:
    command = Command(folder, *grid_of(methods), environment=environment)
    try:
        meanwhile(command)
        return command.result(), command.results
    finally:
        command.end()


def _stop_after_two(command: Command) -> None:
    command.wait_for_checkpoint(2)
    command.signal(signal.SIGINT)


def _kill_while_measuring(command: Command) -> None:
    command.wait_for_words("measuring inference")
    command.signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def interrupted_once(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The results of `finetune,ncm`, interrupted after two of finetune's three experiences."""
    result, results = _run(tmp_path_factory.mktemp("stopped"), "finetune,ncm", environment, _stop_after_two)
    assert result.status == 1, result.output
    assert on_disk(results) == {"finetune/record.json", "finetune/checkpoints/1", "finetune/checkpoints/2"}
    return results


@pytest.fixture
def interrupted(interrupted_once: Path, folder: Path) -> Path:
    """A copy of them, where the next command finds it."""
    return Path(shutil.copytree(interrupted_once, folder / "results"))


@pytest.fixture(scope="session")
def unmeasured_once(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The results of `finetune` alone, learnt and evaluated, killed while its inference was measured."""
    folder = tmp_path_factory.mktemp("unmeasured")
    _, results = _run(folder, "finetune", environment, _kill_while_measuring)
    assert on_disk(results) == {*done_files("finetune"), "finetune/checkpoints/1", "finetune/checkpoints/3"}
    assert record_of(results, "finetune").done
    return results


@pytest.fixture
def unmeasured(unmeasured_once: Path, folder: Path) -> Path:
    """A copy of them, where the next command finds it."""
    return Path(shutil.copytree(unmeasured_once, folder / "results"))


# ---- the table -----------------------------------------------------------------------------------


@pytest.fixture
def drill(request: pytest.FixtureRequest) -> Drill:
    """Note a fault that was survived: what it was, what was on disk afterwards, what the next command did."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda fault, disk, after: rows.append((fault, disk, after))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, where all faults were tried and not the quick ones only."""
    rows = config.stash.get(ROWS, [])
    if not rows or config.getoption("markexpr"):
        return
    terminalreporter.write_line("")
    for line in table(rows):
        terminalreporter.write_line(line)


def table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """The rows as Markdown; those that are equal are one."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|:---|---:|:---|:---|"
    for row in dict.fromkeys(rows):
        fault, disk, after = row
        yield f"| {fault} | {rows.count(row)} | {disk} | {after} |"
