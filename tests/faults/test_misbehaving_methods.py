"""Methods that raise, diverge, take all memory or never end: only they are not done."""

from __future__ import annotations

import re
import resource

import pytest

from tests.faults.commands import (
    TASKS,
    cell_of,
    check_checkpoints,
    contents,
    done_files,
    grid_of,
    on_disk,
    record_of,
    statuses,
)
from tests.faults.misbehaving import install

#: What a linear probe or `ncm` needs is far less; a method that never ends is waited for so long.
TIMEOUT = "10"
#: Bytes that a process may have for its data: libraries and threads take a part of it.
MOST = 4 * 2**30
KEPT = re.escape(f"; its checkpoint after task 1 of {TASKS} is kept")

REASONS = {
    "raises": ("failed", "RuntimeError: the disk is on fire"),
    "nan": (
        "diverged",
        "DivergedError: the loss became nan in task 2, epoch 1, step 1; a lower learning rate may help",
    ),
    "hog": (
        "oom",
        r"out of memory with \d{4,} MiB in use at the highest point \([a-z ]+\), a batch of 16 images in "
        r"training and at most 128 in evaluation: RuntimeError: .*can't allocate memory.*",
    ),
    "never": ("failed", "it took longer than the limit, 10 s"),
    "deaf": ("failed", "it took longer than the limit, 10 s"),
}
#: The line of the traceback, for those whose process was not ended from outside.
FRAMES = {"raises": "in misbehave", "nan": "in before_backward", "hog": "in misbehave"}
DISK = {
    "raises": "its record (failed), traceback.txt, its checkpoints",
    "nan": "its record (diverged: task, step), traceback.txt, its checkpoints",
    "hog": "its record (oom: batch size, peak), traceback.txt, its checkpoints",
    "never": "its record (failed: longer than the limit), its checkpoints",
    "deaf": "its record (failed: longer than the limit), its checkpoints",
}
FAULTS = {
    "raises": "a method raises",
    "nan": "a method's loss becomes NaN",
    "hog": "a method takes all memory",
    "never": "a method never ends, under --cell-timeout",
    "deaf": "a method never ends and swallows the interrupt, under --cell-timeout",
}


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))


def files_of(name: str) -> set[str]:
    return {
        f"{name}/record.json",
        f"{name}/checkpoints/1",
        *({f"{name}/traceback.txt"} if name in FRAMES else ()),
    }


def check(results, name: str) -> None:
    """The record of a cell that misbehaved says how; its traceback lies beside it."""
    record, (status, reason) = record_of(results, name), REASONS[name]
    assert record.status == status
    assert re.fullmatch(reason + KEPT, record.reason), record.reason
    if name in FRAMES:
        text = (cell_of(results, name) / "traceback.txt").read_text()
        assert text.startswith("Traceback")
        assert FRAMES[name] in text or name == "nan"
    if name == "hog":
        assert record.cost.peak_memory.training.peak > 2**30


def test_methods_that_raise_diverge_or_never_end_stop_no_other_method(run, folder, environment):
    package = install(folder, environment)
    arguments = (*grid_of("raises,nan,never,ncm"), "--cell-timeout", TIMEOUT)
    result = run(*arguments, environment=package.environment)
    assert result.status == 1
    assert "3 of 4 cells are not done; reasons are in the table's notes" in result.output
    results = folder / "results"
    bad = ("raises", "nan", "never")
    assert statuses(results) == {name: REASONS[name][0] for name in bad} | {"ncm": "done"}
    assert on_disk(results) == done_files("ncm").union(*map(files_of, bad))
    for name in bad:
        check(results, name)
    check_checkpoints(results)


@pytest.mark.slow
@pytest.mark.parametrize("name", REASONS)
def test_a_method_that_misbehaves_goes_on_once_it_is_cured(name, run, whole, folder, environment, drill):
    package = install(folder, environment)
    arguments = grid_of(f"{name},ncm")
    if name in ("never", "deaf"):
        arguments += ("--cell-timeout", TIMEOUT)
    more = {"before": limit_memory} if name == "hog" else {}
    result = run(*arguments, environment=package.environment, **more)
    assert result.status == 1
    assert "1 of 2 cells are not done; reasons are in the table's notes" in result.output
    results = folder / "results"
    assert statuses(results) == {name: REASONS[name][0], "ncm": "done"}
    assert on_disk(results) == done_files("ncm") | files_of(name)
    check(results, name)
    check_checkpoints(results)

    package.cure()
    healthy = contents(cell_of(results, "ncm"))
    assert run(*arguments, environment=package.environment).status == 0
    assert on_disk(results) == done_files("ncm", name)
    assert contents(cell_of(results, "ncm")) == healthy
    record = record_of(results, name)
    assert record.manifest.resumed == [1]
    package.check_cured(record, whole)
    drill(FAULTS[name], f"{DISK[name]}; the other cells are done", "tries again, from the last task")
