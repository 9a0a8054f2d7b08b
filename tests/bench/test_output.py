"""Every command prints in every encoding: a sign that the encoding lacks is spelled out."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.output import SPELL_OUT, print_any_sign
from tests.bench.in_process import executors, run_here

ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437"]
GRID = ("run", "--methods", "ncm,linear-probe", "--weights", "random", "--scale", "smoke", "--seeds", "0")
COMMANDS = {
    "run --help": ("run", "--help"),
    "report --help": ("report", "--help"),
    "list": ("list",),
    "doctor": ("doctor",),
    "dry run": (*GRID, "--dry-run"),
}


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """Run a command whose output has an encoding; returns (status, the text it printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALLORA_BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(encoding: str, *arguments: str) -> tuple[int, str]:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            status = main(arguments, executors(), start=lambda: run_here)
        except SystemExit as ended:  # argparse's --help
            status = int(ended.code or 0)
        stream.flush()
        return status, stream.buffer.getvalue().decode(encoding)

    return run


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_prints_in_any_encoding(command, encoding, printed):
    status, text = printed(encoding, *command)
    assert status == 0
    assert text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_grid_ends_with_the_status_of_its_cells(encoding, printed, tmp_path):
    status, text = printed(encoding, *GRID)
    assert status == 0
    assert "linear-probe" in text
    status, text = printed(encoding, "report")
    assert status == 0
    failing = ("run", "--methods", "finetune:lr=1e30", *GRID[3:])
    assert printed(encoding, *failing)[0] == 1
    assert (tmp_path / "results" / "report" / "report.md").read_text(encoding="utf-8")


def test_the_help_spells_out_what_ascii_lacks(printed):
    assert "--methods ..." in printed("ascii", "run", "--help")[1]


def test_letters_lose_their_accents_and_what_has_no_spelling_is_marked():
    assert "café ± 1 \u2602".encode("ascii", SPELL_OUT) == b"cafe +/- 1 ?"


@pytest.mark.parametrize("errors", ["replace", "backslashreplace", "ignore"])
def test_a_way_that_the_user_chose_is_kept(errors):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    print_any_sign(stream)
    assert stream.errors == errors


def test_the_undecodable_byte_of_a_file_name_is_printed():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    print_any_sign(stream)
    print("data/\udce9", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"data/?\n"


def test_every_sign_that_is_printed_has_a_spelling():
    root = Path(__file__).parents[2]
    printed = {
        sign
        for room in ("bench", "reports")
        for path in (root / room).rglob("*.py")
        if "figures" not in path.parts  # their text is drawn
        for sign in re.findall(r"[^\x00-\x7f]", path.read_text(encoding="utf-8"))
    }
    assert not [sign for sign in printed if b"?" in sign.encode("ascii", SPELL_OUT)]
