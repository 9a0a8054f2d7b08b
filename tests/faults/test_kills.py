"""kill -9: of the grid at any moment, of a cell's process, of the server that cells are forked from."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest

from bench.cell import checkpoint
from bench.record import RECORD_NAME
from tests.faults.commands import (
    TASKS,
    Command,
    cell_of,
    check_checkpoints,
    check_predictions,
    contents,
    done_files,
    facts,
    grid_of,
    on_disk,
    processes_of,
    record_of,
    statuses,
)
from tests.faults.misbehaving import install

GRIDS = ("finetune,ncm", "inflora,linear-probe", "duallora,l2p", "dualprompt,coda-prompt", "joint,finetune")
#: How often each is killed before it may end; a grid that is killed twice is the quick one.
KILLS = [(0, 2), *((seed, 1) for seed in range(1, 20))]
SEEDS = [pytest.param(*one, marks=[] if one == KILLS[0] else pytest.mark.slow) for one in KILLS]
#: All that may be there at any moment: records, predictions, checkpoints, and a partial file of one of them.
AT_ANY_MOMENT = re.compile(
    r"[a-z0-9-]+/(record\.json|predictions|checkpoints/\d|\.(record\.json|predictions)\.PID|checkpoints/\.\d\.PID)"
)


def last_checkpoint(results: Path, method: str) -> int:
    folders = list(results.glob(f"{method}-digits-*"))
    return max(checkpoint.list_checkpoints(folders[0]), default=0) if folders else 0


def is_recorded(results: Path, method: str) -> bool:
    return any(results.glob(f"{method}-digits-*/{RECORD_NAME}"))


@pytest.mark.parametrize(("seed", "times"), SEEDS)
def test_a_grid_that_is_killed_at_any_moment_goes_on_from_whole_files(seed, times, start, run, whole, drill):
    methods, moments = GRIDS[seed % len(GRIDS)], random.Random(seed)
    expected, names = whole(methods), methods.split(",")
    reached: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(times):
        results = killed_at(moments.uniform(0, expected.seconds), start(*grid_of(methods)))
        files = on_disk(results)
        assert {name for name in files if not AT_ANY_MOMENT.fullmatch(name)} == set()
        assert len([name for name in files if name.endswith("PID")]) <= 1
        assert set(statuses(results).values()) <= {"done"}
        check_checkpoints(results)
        check_predictions(results)
        for name in names:
            learnt = last_checkpoint(results, name)
            if not is_recorded(results, name) and 0 < learnt < TASKS and learnt not in reached[name]:
                reached[name].append(learnt)
        drill(
            "kill -9 of the grid at a random moment",
            "whole records, whole checkpoints, at most one partial file; no process",
            "resumes after the last task; the record of an uninterrupted run",
        )

    again = run(*grid_of(methods))
    assert again.status == 0, again.output
    assert on_disk(results) == done_files(*names)
    check_predictions(results)
    for name in names:
        record = record_of(results, name)
        assert facts(record) == expected.facts[name]
        assert record.manifest.resumed == reached[name]
        assert record.cost.latency is not None


def killed_at(seconds: float, command: Command) -> Path:
    """The results folder of a command that is killed after so many seconds, if it has not ended before."""
    try:
        command.process.wait(seconds)
    except subprocess.TimeoutExpired:
        command.signal(signal.SIGKILL)
    result = command.result()
    assert result.status in (-signal.SIGKILL, 0), result.output
    return command.results


def test_no_work_goes_on_for_a_grid_that_is_gone(start, folder, environment):
    """Work that would not end by itself."""
    package = install(folder, environment)
    command = start(*grid_of("never"), environment=package.environment)
    command.wait_for(package.entered.exists, "work without end")
    command.signal(signal.SIGKILL)
    assert command.result().status == -signal.SIGKILL
    assert on_disk(command.results) == {"never/checkpoints/1"}
    check_checkpoints(command.results)


REASON = re.compile(
    r"its process was ended by SIGKILL, \d+ MiB resident when last checked; "
    rf"its checkpoint after task ([12]) of {TASKS} is kept"
)


@pytest.mark.slow
def test_a_cell_whose_process_is_killed_is_recorded_and_goes_on_later(start, run, whole, drill):
    command = start(*grid_of("finetune,ncm"))
    command.wait_for_checkpoint()
    os.kill(command.wait_for_worker(), signal.SIGKILL)
    result = command.result()
    assert result.status == 1
    assert "1 of 2 cells are not done; reasons are in the table's notes" in result.output
    assert statuses(command.results) == {"finetune": "failed", "ncm": "done"}
    reason = record_of(command.results, "finetune").reason
    match = REASON.fullmatch(reason)
    assert match, reason
    learnt = int(match[1])
    checkpoints = {"finetune/checkpoints/1", f"finetune/checkpoints/{learnt}"}
    assert on_disk(command.results) == {"finetune/record.json", *done_files("ncm"), *checkpoints}
    check_checkpoints(command.results)

    done = contents(cell_of(command.results, "ncm"))
    again = run(*grid_of("finetune,ncm"))
    assert again.status == 0
    assert f"it continues after task {learnt} of {TASKS}" in again.output
    assert on_disk(command.results) == done_files("finetune", "ncm")
    assert contents(cell_of(command.results, "ncm")) == done
    record = record_of(command.results, "finetune")
    assert record.manifest.resumed == [learnt]
    assert facts(record) == whole("finetune,ncm").facts["finetune"]
    drill(
        "kill -9 of a cell's process",
        "its record (failed, ended by SIGKILL) and its checkpoints; the other cells are done",
        "resumes after the last task",
    )


@pytest.mark.slow
def test_the_server_that_cells_are_forked_from_is_started_again(start, whole, drill):
    command = start(*grid_of("finetune,ncm"))
    command.wait_for_checkpoint()
    (server,) = {pid for pid in processes_of(command.process.pid) if is_server(pid)} - {
        *command.workers(),
        command.process.pid,
    }
    os.kill(server, signal.SIGKILL)
    result = command.result()
    assert result.status == 0
    assert on_disk(command.results) == done_files("finetune", "ncm")
    expected = whole("finetune,ncm").facts
    assert {name: facts(record_of(command.results, name)) for name in expected} == expected
    drill("kill -9 of the server that cells are forked from", "all cells are done", "has nothing left to do")


def is_server(pid: int) -> bool:
    return b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_one_thing_after_another_happens_to_a_cell_and_it_is_right_in_the_end(start, whole, drill):
    """Its process is killed; it is interrupted; it is terminated; its last checkpoint is damaged."""
    command = start(*grid_of("finetune,ncm"))
    command.wait_for_checkpoint()
    os.kill(command.wait_for_worker(), signal.SIGKILL)
    assert command.result().status == 1
    assert statuses(command.results) == {"finetune": "failed", "ncm": "done"}
    assert REASON.fullmatch(record_of(command.results, "finetune").reason)
    reached = [last_checkpoint(command.results, "finetune")]

    for number in (signal.SIGINT, signal.SIGTERM):
        command = start(*grid_of("finetune,ncm"))
        command.wait_for_words("it continues after task")
        command.wait_for_checkpoint(2)
        command.signal(number)
        result = command.result()
        assert result.status == 1
        assert "stopped: 0 of 1 cells ended and are on disk in 'results'" in result.output
        reached.append(last_checkpoint(command.results, "finetune"))
        record = record_of(command.results, "finetune")
        assert record.status == "interrupted"
        assert record.reason == f"stopped; its checkpoint after task {reached[-1]} of {TASKS} is kept"
        checkpoints = {"finetune/checkpoints/1", f"finetune/checkpoints/{reached[-1]}"}
        assert on_disk(command.results) == {"finetune/record.json", *done_files("ncm"), *checkpoints}

    path = checkpoint.list_checkpoints(cell_of(command.results, "finetune"))[reached[-1]]
    path.write_bytes(path.read_bytes()[:-100])
    command = start(*grid_of("finetune,ncm"))
    command.wait_for_words("is damaged: its content does not have the hash in its name; it was set aside")
    assert f"finetune/checkpoints/{reached[-1]}.damaged" in on_disk(command.results)
    result = command.result()
    assert result.status == 0
    assert on_disk(command.results) == done_files("finetune", "ncm")
    expected = whole("finetune,ncm").facts
    assert {name: facts(record_of(command.results, name)) for name in expected} == expected
    record = record_of(command.results, "finetune")
    assert record.manifest.resumed == [1]  # the last intact checkpoint was that after task 1
    drill(
        "one after the other: kill -9 of a cell, SIGINT, SIGTERM, a truncated checkpoint",
        "after each: the record and whole checkpoints",
        "resumes each time; in the end the record of an uninterrupted run",
    )
