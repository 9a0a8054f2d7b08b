"""The runs the project stands by: their records are whole, and what is shown of them is what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.record import Record, read_all
from methods.registry import METHODS
from reports.report import write_report

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference"
REPORT = REFERENCE / "report" / "report.md"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return read_all(REFERENCE)


def test_every_method_has_three_seeds_on_two_benchmarks(records: list[Record]) -> None:
    done = {(r.method, r.benchmark, r.seed) for r in records if r.done}
    assert done == {(m, b, s) for m in METHODS for b in ("cifar100", "digits") for s in (0, 1, 2)}


def test_all_was_measured_and_from_code_that_is_known(records: list[Record]) -> None:
    for record in records:
        assert record.cost is not None
        assert record.cost.latency is not None
        assert record.cost.peak_memory is not None
        assert record.cost.peak_memory.inference is not None
        assert record.cost.flops is not None
        assert record.manifest.dirty is False
        assert record.manifest.commit is not None


def test_the_commands_hold_no_path_of_a_machine(records: list[Record]) -> None:
    commands = {record.manifest.command or "" for record in records}
    assert commands
    assert not any(re.search(r"(?<![\w.])[/~]", command) for command in commands)


def test_the_report_is_that_of_the_records(records: list[Record], tmp_path: Path) -> None:
    """Write it anew with: python -m bench report --results results/reference."""
    assert write_report(records, tmp_path).read_text(encoding="utf-8") == REPORT.read_text(encoding="utf-8")


def test_the_readme_shows_the_tables_and_figures_of_the_report() -> None:
    readme, report = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", REPORT))
    shown = [line for line in readme.splitlines() if line.startswith("| rank |")]
    headlines = re.findall(r"^\| rank \| method \|.*\n(?:\|.*\n)+", report, re.MULTILINE)
    assert len(shown) == len(headlines) == 2
    assert all(table in readme for table in headlines)
    figures = re.findall(r"!\[[^]]*\]\((results/reference/[^)]+\.svg)\)", readme)
    assert len(figures) >= 2
    assert all((ROOT / figure).is_file() for figure in figures)
