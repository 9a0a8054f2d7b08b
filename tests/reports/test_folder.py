"""A report folder holds what this report wrote, and what no report ever wrote."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.record import Record
from methods.errors import UsageError
from reports.folder import LIST_NAME, strangers, write_files
from reports.report import render_report

Make = Callable[..., Record]


Files = dict[str, bytes]


@pytest.fixture(scope="module")
def full(make: Make) -> Files:
    """The files of a report of one condition."""
    return render_report([make("a", seed) for seed in (0, 1)])


@pytest.fixture(scope="module")
def quick(make: Make) -> Files:
    """The files of a report of another condition."""
    return render_report([make("a", seed, config={"scale": "quick"}) for seed in (0, 1)])


@pytest.fixture
def out(full: Files, quick: Files, tmp_path: Path) -> Path:
    """The folder of a report of both conditions."""
    write_files(tmp_path / "out", {**full, **quick})
    return tmp_path / "out"


@pytest.fixture(scope="module")
def stale(full: Files, quick: Files) -> list[str]:
    """The files of the first condition only, sorted; at least a figure and a table."""
    names = sorted(full.keys() - quick.keys())
    assert {name.partition("/")[0] for name in names} == {"figures", "tables"}
    return names


def contents(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_list(folder: Path) -> Files:
    return {name: content for name, content in contents(folder).items() if name != LIST_NAME}


def as_before(folder: Path) -> None:
    """Make the folder one that a version without the list of files wrote."""
    (folder / LIST_NAME).unlink()


def test_what_an_earlier_report_wrote_is_removed(out: Path, quick: Files) -> None:
    write_files(out, quick)
    assert without_list(out) == quick


def test_so_are_the_files_of_a_report_without_a_list(out: Path, quick: Files) -> None:
    as_before(out)
    write_files(out, quick)
    assert without_list(out) == quick


def test_a_damaged_list_is_as_none(out: Path, quick: Files) -> None:
    (out / LIST_NAME).write_bytes(b"\xff\x00 ../../x\n")
    write_files(out, quick)
    assert without_list(out) == quick


def test_folders_without_files_are_removed(out: Path, quick: Files) -> None:
    assert (out / "figures").is_dir()
    write_files(out, {name: content for name, content in quick.items() if not name.startswith("figures")})
    assert not (out / "figures").exists()


def test_the_list_is_one_of_sha256sum(out: Path) -> None:
    lines = (out / LIST_NAME).read_text(encoding="ascii").splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = contents(out)
    del files[LIST_NAME]
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


# ---- what no report wrote ----------------------------------------------------------------------

FOREIGN = (
    "notes.md",
    "figures/drawn-by-hand.svg",
    "figures/digits-0123abcd-curves.pdf",
    "tables/mine.csv",
    "tables/old/digits-0123abcd-headline.csv",
    "raw/cells.csv",
)


@pytest.mark.parametrize("listed", ["with a list", "as before"])
def test_foreign_files_stay(listed: str, out: Path, quick: Files) -> None:
    for name in FOREIGN:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    if listed == "as before":
        as_before(out)
    write_files(out, quick)
    assert [name for name in FOREIGN if (out / name).read_text() != name] == []


def test_a_figure_that_was_edited_stays_and_is_named(out: Path, quick: Files, stale: list[str]) -> None:
    edited = stale[0]
    (out / edited).write_text("improved by hand")
    assert strangers(out) == []
    write_files(out, quick)
    assert (out / edited).read_text() == "improved by hand"
    assert strangers(out) == [edited]


def test_a_folder_with_such_names_but_no_report_keeps_its_files(
    full: Files, quick: Files, tmp_path: Path
) -> None:
    own = tmp_path / "paper" / "figures" / "digits-0123abcd-curves.svg"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    write_files(tmp_path / "paper", full)
    write_files(tmp_path / "paper", quick)
    assert own.read_text() == "mine"


@pytest.mark.parametrize("name", ["report.md", "report.html", "cells.csv", LIST_NAME])
def test_a_file_that_no_report_wrote_is_not_overwritten(name: str, quick: Files, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        UsageError, match=re.escape(f"{name}' is there, and no report wrote it; give another --out")
    ):
        write_files(tmp_path, quick)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_list_with_foreign_names_removes_nothing(out: Path, quick: Files, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("kept")
    (out / "notes.csv").write_text("kept")
    digest = hashlib.sha256(b"kept").hexdigest()
    names = ("../secret.csv", str(secret), "tables/../../secret.csv", "notes.csv")
    with (out / LIST_NAME).open("a", encoding="utf-8") as file:
        file.writelines(f"{digest}  {name}\n" for name in names)
    write_files(out, quick)
    assert secret.read_text() == (out / "notes.csv").read_text() == "kept"


# ---- links -------------------------------------------------------------------------------------


def test_a_linked_file_is_written_where_it_is(out: Path, quick: Files, tmp_path: Path) -> None:
    place = tmp_path / "shown.md"
    (out / "report.md").rename(place)
    (out / "report.md").symlink_to(place)
    write_files(out, quick)
    assert (out / "report.md").is_symlink()
    assert place.read_bytes() == quick["report.md"]


@pytest.mark.parametrize("listed", ["with a list", "as before"])
def test_nothing_behind_a_link_is_removed(
    listed: str, out: Path, quick: Files, stale: list[str], tmp_path: Path
) -> None:
    (out / "figures").rename(tmp_path / "archive")
    (out / "figures").symlink_to(tmp_path / "archive")
    if listed == "as before":
        as_before(out)
    write_files(out, quick)
    kept = [name for name in stale if name.startswith("figures/")]
    assert [name for name in stale if (out / name).exists()] == kept
    assert strangers(out) == kept


def test_a_link_in_place_of_a_figure_stays(out: Path, quick: Files, stale: list[str], tmp_path: Path) -> None:
    linked = stale[0]
    (out / linked).rename(tmp_path / "archived.svg")
    (out / linked).symlink_to(tmp_path / "archived.svg")
    write_files(out, quick)
    assert (out / linked).is_symlink()
    assert (tmp_path / "archived.svg").is_file()


# ---- failures ----------------------------------------------------------------------------------


def failing(nth: int, call: Callable[..., object]) -> Callable[..., object]:
    """The call, whose nth time fails as on a full disk."""
    times = iter(range(1, 10**6))

    def instead(*arguments: object, **options: object) -> object:
        if next(times) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments, **options)

    return instead


@pytest.mark.parametrize("operation", ["write_bytes", "replace"])
@pytest.mark.parametrize("nth", [1, 2, 12])
def test_a_failed_write_leaves_the_old_report_whole(
    operation: str, nth: int, out: Path, quick: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, changed = contents(out), dict.fromkeys(quick, b"changed")
    with monkeypatch.context() as patch:
        patch.setattr(Path, operation, failing(nth, getattr(Path, operation)))
        with pytest.raises(OSError, match="No space left on device"):
            write_files(out, changed)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["report.md", "report.html", "cells.csv", "figures", "tables"])
def test_a_place_that_is_taken_leaves_the_old_report_whole(name: str, out: Path, quick: Files) -> None:
    moved = out / "moved"
    (out / name).rename(moved)
    if moved.is_dir():
        (out / name).write_text("a file")
    else:
        (out / name).mkdir()
    before = contents(out)
    with pytest.raises(OSError, match=name):
        write_files(out, quick)
    assert contents(out) == before


def test_what_a_killed_report_left_is_swept(out: Path, quick: Files) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    drafts = [f".report.md.{int(dead.stdout)}", f"figures/.digits-0123abcd-curves.svg.{int(dead.stdout)}"]
    others = [f".report.md.{os.getppid()}", f".notes.md.{int(dead.stdout)}"]
    for name in (*drafts, *others):
        (out / name).write_text("half")
    write_files(out, quick)
    assert [name for name in drafts if (out / name).exists()] == []
    assert [name for name in others if not (out / name).exists()] == []
