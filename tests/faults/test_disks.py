"""Disks that are full, read-only, or taken away while a grid runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.faults.commands import (
    cell_of,
    check_checkpoints,
    check_predictions,
    contents,
    done_files,
    facts,
    grid_of,
    on_disk,
    record_of,
    statuses,
)

pytestmark = pytest.mark.slow

BOTH = done_files("finetune", "ncm")
GRID = grid_of("finetune,ncm")
GOES_ON = "Make room, or the folder writable, and the same command goes on from there"


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user or this machine cannot mount here: {done.stderr.strip()}")


class Disk:
    """A small disk of memory, with the results folder of commands that run in `folder` on it."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.results.mkdir()
        mount("-t", "tmpfs", "-o", "size=8m", "faults", self.results)

    def fill(self) -> None:
        """Leave not a byte."""
        with self._filling.open("wb", 0) as file, pytest.raises(OSError, match="No space left on device"):
            _write_on_and_on(file)

    @property
    def _filling(self) -> Path:
        return self.results / ".locks" / "filling"

    def make_room(self) -> None:
        mount("-o", "remount,size=64m", self.results)

    def make_read_only(self) -> None:
        mount("-o", "remount,ro", self.results)

    def make_writable(self) -> None:
        mount("-o", "remount,rw", self.results)

    def files(self) -> set[str]:
        """The grid's."""
        return on_disk(self.results) - {".locks/filling"}


def _write_on_and_on(file: BinaryIO) -> None:
    while True:
        file.write(bytes(4096))


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    disk = Disk(folder)
    yield disk
    subprocess.run(["umount", "--lazy", disk.results], check=True)


@pytest.fixture
def veil() -> Iterator[list[Path]]:
    """Folders over which something was mounted, to be taken off again."""
    folders: list[Path] = []
    yield folders
    for folder in folders:
        subprocess.run(["umount", "--lazy", folder], check=True)


def run_ncm(disk: Disk, run) -> dict[str, bytes]:
    """An earlier record on the disk, and its bytes."""
    assert run(*grid_of("ncm")).status == 0
    assert disk.files() == done_files("ncm")
    return contents(cell_of(disk.results, "ncm"))


def check_finished(results: Path, whole) -> None:
    assert on_disk(results) - {".locks/filling"} == BOTH
    check_predictions(results)
    expected = whole("finetune,ncm").facts
    assert {name: facts(record_of(results, name)) for name in expected} == expected


@pytest.mark.parametrize(
    "moment", ["before the first checkpoint", "after the first checkpoint", "while inference is timed"]
)
def test_a_full_disk_harms_nothing_and_with_more_room_the_grid_goes_on(
    moment, disk, start, run, whole, drill
):
    earlier = run_ncm(disk, run)
    command = start(*GRID)
    if moment == "before the first checkpoint":
        command.wait_for_words("[1/1]")
    elif moment == "after the first checkpoint":
        command.wait_for_checkpoint()
    else:
        command.wait_for_words("measuring inference")
    disk.fill()
    result = command.result()
    assert result.status == 1
    assert "No space left on device" in result.output
    assert "nothing that was on disk before is harmed" in result.output
    assert GOES_ON in result.output
    files = disk.files()
    assert contents(cell_of(disk.results, "ncm")) == earlier
    if moment == "before the first checkpoint":
        assert files == done_files("ncm")
    elif moment == "after the first checkpoint":
        learnt = max(int(name[-1]) for name in files if "checkpoints" in name)
        checkpoints = {"finetune/checkpoints/1", f"finetune/checkpoints/{learnt}"}
        assert files == done_files("ncm") | checkpoints
    else:
        assert files == {*BOTH, "finetune/checkpoints/1", "finetune/checkpoints/3"}
        assert statuses(disk.results) == {"finetune": "done", "ncm": "done"}
        assert record_of(disk.results, "finetune").cost.latency is None
    check_checkpoints(disk.results)

    disk.make_room()
    again = run(*GRID)
    assert again.status == 0, again.output
    check_finished(disk.results, whole)
    assert contents(cell_of(disk.results, "ncm")) == earlier
    assert record_of(disk.results, "finetune").cost.latency is not None
    drill(
        f"the disk is full {moment}",
        "earlier records, byte for byte; what fitted of checkpoints and records, whole",
        "resumes, once there is room",
    )


@pytest.mark.parametrize("moment", ["a cell is trained", "inference is timed"])
def test_a_results_folder_that_is_deleted_is_not_created_again(moment, folder, start, run, whole, drill):
    command = start(*grid_of("finetune"))
    if moment == "a cell is trained":
        command.wait_for_checkpoint()
    else:
        command.wait_for_words("measuring inference")
    command.results.rename(folder / "gone")  # at once, and not file by file
    shutil.rmtree(folder / "gone")
    result = command.result()
    assert result.status == 1
    assert not command.results.exists()
    last = result.output.strip().splitlines()[-1]
    if moment == "a cell is trained":
        assert last.startswith("error: cannot make the folder 'results/finetune-digits-s0-")
        assert last.endswith("(No such file or directory); was the results folder removed?")
    else:
        assert "results" in last
        assert last.startswith(("error: ", "inference could not be measured: "))

    assert run(*grid_of("finetune")).status == 0
    assert on_disk(command.results) == done_files("finetune")
    assert facts(record_of(command.results, "finetune")) == whole("finetune,ncm").facts["finetune"]
    drill(
        f"the results folder is deleted while {moment}",
        "nothing; it is not created again",
        "starts from scratch",
    )


def test_a_read_only_results_folder_is_refused(disk, run, whole, drill):
    earlier = run_ncm(disk, run)
    disk.make_read_only()
    result = run(*GRID)
    assert result.status == 2
    assert "error: cannot write results to 'results'" in result.output
    assert contents(disk.results) == {
        f"{cell_of(disk.results, 'ncm').name}/{k}": v for k, v in earlier.items()
    }

    disk.make_writable()
    assert run(*GRID).status == 0
    check_finished(disk.results, whole)
    drill(
        "a results folder that is read-only",
        "what was there: exit status 2 and a sentence",
        "runs, once the folder is writable",
    )


@pytest.mark.parametrize("moment", ["a cell is trained", "inference is timed"])
def test_a_results_folder_that_becomes_read_only_harms_nothing(moment, veil, start, run, whole, drill):
    command = start(*GRID)
    if moment == "a cell is trained":
        command.wait_for_checkpoint()
    else:
        command.wait_for_words("measuring inference")
    mount("--bind", command.results, command.results)  # over it, since files on it are open for writing
    veil.append(command.results)
    mount("-o", "remount,ro,bind", command.results)
    before = contents(command.results)
    result = command.result()
    assert result.status == 1
    assert "Read-only file system" in result.output
    assert GOES_ON in result.output
    assert contents(command.results) == before
    files = on_disk(command.results)
    if moment == "a cell is trained":
        learnt = max(int(name[-1]) for name in files if "checkpoints" in name)
        assert files == {"finetune/checkpoints/1", f"finetune/checkpoints/{learnt}"}
    else:
        checkpoints = {f"{name}/checkpoints/{n}" for name in ("finetune", "ncm") for n in (1, 3)}
        assert files == BOTH | checkpoints

    subprocess.run(["umount", veil.pop()], check=True)
    assert run(*GRID).status == 0
    check_finished(command.results, whole)
    drill(
        f"the results folder becomes read-only while {moment}",
        "what was there",
        "resumes, once the folder is writable",
    )
