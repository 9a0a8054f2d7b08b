"""SIGINT, SIGTERM and SIGHUP: once, twice, to the command alone, to all of its processes."""

from __future__ import annotations

import signal
import time

import pytest

from bench.grid.stopping import ONE_REQUEST
from tests.faults.commands import (
    TASKS,
    cell_of,
    check_checkpoints,
    done_files,
    facts,
    grid_of,
    on_disk,
    record_of,
    statuses,
)
from tests.faults.misbehaving import install

pytestmark = pytest.mark.slow

GOES_ON = "the same command runs the rest, and resumes interrupted cells after their last completed task"


@pytest.mark.parametrize("whom", ["the command", "all of its processes"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_the_grid_and_keeps_its_checkpoints(number, whom, start, run, whole, drill):
    command = start(*grid_of("finetune,ncm"))
    command.wait_for_checkpoint()
    (command.signal if whom == "the command" else command.signal_all)(number)
    result = command.result()
    assert result.status == 1
    assert f"stopped: 0 of 2 cells ended and are on disk in 'results'; {GOES_ON}" in result.output
    assert statuses(command.results) == {"finetune": "interrupted"}
    learnt = max(int(name[-1]) for name in on_disk(command.results) if "checkpoints" in name)
    checkpoints = {"finetune/checkpoints/1", f"finetune/checkpoints/{learnt}"}
    assert on_disk(command.results) == {"finetune/record.json", *checkpoints}
    check_checkpoints(command.results)
    reason = record_of(command.results, "finetune").reason
    assert reason == f"stopped; its checkpoint after task {learnt} of {TASKS} is kept"

    again = run(*grid_of("finetune,ncm"))
    assert again.status == 0
    assert f"it continues after task {learnt} of {TASKS}" in again.output
    assert on_disk(command.results) == done_files("finetune", "ncm")
    assert record_of(command.results, "finetune").manifest.resumed == [learnt]
    expected = whole("finetune,ncm").facts
    assert {name: facts(record_of(command.results, name)) for name in expected} == expected
    drill(
        f"{number.name}, to {whom}",
        "its record (interrupted), its checkpoints",
        "resumes after the last task",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_to_all_processes_while_the_first_cell_is_prepared(number, start, run, whole, drill):
    """The server that cells are forked from imports the libraries then, for some seconds."""
    command = start(*grid_of("finetune"))
    command.wait_for_words("[1/1]")
    command.wait_for(lambda: len(command.helpers()) == 2, "the server that cells are forked from")
    command.signal_all(number)
    result = command.result()
    assert result.status == 1
    assert f"stopped: 0 of 1 cells ended and are on disk in 'results'; {GOES_ON}" in result.output
    assert on_disk(command.results) <= {"finetune/record.json"}
    assert set(statuses(command.results).values()) <= {"interrupted"}

    assert run(*grid_of("finetune")).status == 0
    assert on_disk(command.results) == done_files("finetune")
    assert facts(record_of(command.results, "finetune")) == whole("finetune,ncm").facts["finetune"]
    drill(
        f"{number.name}, to all processes while the libraries are imported",
        "its record (interrupted), or nothing",
        "starts the cell",
    )


def test_a_signal_while_inference_is_timed_takes_nothing_away(start, run, whole, drill):
    command = start(*grid_of("finetune"))
    command.wait_for_words("measuring inference")
    command.signal(signal.SIGINT)
    result = command.result()
    assert result.status == 1
    said = "stopped: all accuracies are on disk; the same command goes on measuring inference"
    assert said in result.output
    checkpoints = {"finetune/checkpoints/1", "finetune/checkpoints/3"}
    assert on_disk(command.results) == done_files("finetune") | checkpoints
    assert statuses(command.results) == {"finetune": "done"}
    check_checkpoints(command.results)

    assert run(*grid_of("finetune")).status == 0
    assert on_disk(command.results) == done_files("finetune")
    record = record_of(command.results, "finetune")
    assert record.cost.latency is not None
    assert record.manifest.resumed == []
    assert facts(record) == whole("finetune,ncm").facts["finetune"]
    drill("SIGINT while inference is timed", "its record (done), its checkpoints", "times inference")


def test_a_second_ctrl_c_ends_at_once_a_cell_that_does_not_obey(
    start, run, whole, folder, environment, drill
):
    package = install(folder, environment)
    command = start(*grid_of("deaf"), environment=package.environment)
    command.wait_for_checkpoint()
    command.wait_for(package.entered.exists, "the misbehaviour")
    command.signal(signal.SIGINT)
    command.wait_for(package.swallowed.exists, "the first signal to be swallowed")
    time.sleep(1.5 * ONE_REQUEST)  # signals that are closer are one
    command.signal(signal.SIGINT)
    result = command.result()
    assert result.status == 1
    assert f"stopped: 0 of 1 cells ended and are on disk in 'results'; {GOES_ON}" in result.output
    assert on_disk(command.results) == {"deaf/checkpoints/1"}  # the cell had no time for a record
    check_checkpoints(command.results)

    package.cure()
    assert run(*grid_of("deaf"), environment=package.environment).status == 0
    assert on_disk(command.results) == done_files("deaf")
    record = record_of(command.results, "deaf")
    assert record.manifest.resumed == [1]
    package.check_cured(record, whole)
    drill("SIGINT twice, the cell swallows it", "its checkpoints", "resumes after the last task")


def test_a_cell_that_does_not_obey_is_killed_after_a_while(start, run, whole, folder, environment, drill):
    package = install(folder, environment)
    command = start(*grid_of("deaf"), environment=package.environment)
    command.wait_for(package.entered.exists, "the misbehaviour")
    command.signal(signal.SIGINT)
    result = command.result()
    assert result.status == 1
    assert f"stopped: 0 of 1 cells ended and are on disk in 'results'; {GOES_ON}" in result.output
    assert on_disk(command.results) == {"deaf/record.json", "deaf/checkpoints/1"}
    record = record_of(command.results, "deaf")
    assert record.status == "interrupted"
    assert record.reason == f"stopped; its checkpoint after task 1 of {TASKS} is kept"

    package.cure()
    assert run(*grid_of("deaf"), environment=package.environment).status == 0
    assert on_disk(command.results) == done_files("deaf")
    package.check_cured(record_of(command.results, "deaf"), whole)
    drill(
        "SIGINT once, the cell swallows it: killed after its grace",
        "its record (interrupted), its checkpoints",
        "resumes after the last task",
    )


def test_a_signal_is_heeded_where_python_ignores_all_exceptions(
    start, run, whole, folder, environment, drill
):
    """A KeyboardInterrupt is lost in `__del__`, in a callback of a weak reference or of `gc`; jax has one."""
    package = install(folder, environment)
    command = start(*grid_of("collects"), environment=package.environment)
    command.wait_for(package.entered.exists, "the callback")
    command.signal(signal.SIGINT)
    command.wait_for(package.swallowed.exists, "the first KeyboardInterrupt")
    result = command.result()
    assert result.status == 1
    assert package.obeyed.exists()  # it ended by itself, and was not killed when its grace was over
    record = record_of(command.results, "collects")
    assert record.status == "interrupted"
    assert on_disk(command.results) == {"collects/record.json", "collects/checkpoints/1"}

    package.cure()
    assert run(*grid_of("collects"), environment=package.environment).status == 0
    assert on_disk(command.results) == done_files("collects")
    package.check_cured(record_of(command.results, "collects"), whole)
    drill(
        "SIGINT while Python ignores all exceptions",
        "its record (interrupted), its checkpoints",
        "resumes after the last task",
    )


def test_an_interrupted_repetition_takes_nothing_away(start, run, whole, folder, drill):
    expected = whole("finetune,ncm")
    command = start(*grid_of("finetune"))
    assert command.result().status == 0
    path = cell_of(command.results, "finetune") / "record.json"
    before = path.read_bytes()
    command = start(*grid_of("finetune"), "--rerun", "all")
    command.wait_for_checkpoint()
    command.signal(signal.SIGINT)
    assert command.result().status == 1
    assert on_disk(command.results) == done_files("finetune")
    assert path.read_bytes() == before
    assert facts(record_of(command.results, "finetune")) == expected.facts["finetune"]
    drill("SIGINT while a finished cell is repeated", "the record of before", "has nothing left to do")
