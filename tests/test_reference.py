"""The reference runs: their records are complete, and the report and README show what the records say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.record import Record, read_all
from bench.spec import Cell
from methods.registry import METHODS
from reports.report import write_report
from scripts.docs.markers import names

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference"
#: Methods whose reference runs are still to be made.
NOT_RUN_YET = {"c-lora", "color", "s-prompts"}
REPORT = REFERENCE / "report" / "report.md"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return read_all(REFERENCE)


def test_every_method_has_three_seeds_on_two_benchmarks(records: list[Record]) -> None:
    done = {(r.method, r.benchmark, r.seed) for r in records if r.done}
    assert done == {
        (m, b, s) for m in METHODS.keys() - NOT_RUN_YET for b in ("cifar100", "digits") for s in (0, 1, 2)
    }


def test_all_was_measured_and_from_code_that_is_known(records: list[Record]) -> None:
    for record in records:
        assert record.cost is not None
        assert record.cost.latency is not None
        assert record.cost.peak_memory is not None
        assert record.cost.peak_memory.inference is not None
        assert all(cost.flops is not None for cost in record.cost.experiences)
        assert len(record.cost.experiences) == record.tasks
        assert record.manifest.dirty is False
        assert record.manifest.commit is not None


def test_a_cell_has_the_id_that_it_was_recorded_under() -> None:
    """A field that is added to a cell must not make the records of before unknown."""
    paths = sorted(REFERENCE.glob("*/record.json"))
    assert paths
    for path in paths:
        config = json.dumps(json.loads(path.read_text(encoding="utf-8"))["config"])
        assert Cell.model_validate_json(config).id == path.parent.name


def test_the_commands_hold_no_path_of_a_machine(records: list[Record]) -> None:
    commands = {record.manifest.command or "" for record in records}
    assert commands
    assert not any(re.search(r"(?<![\w.])[/~]", command) for command in commands)


def test_the_report_is_that_of_the_records(records: list[Record], tmp_path: Path) -> None:
    """Write it again with: python -m bench report --results results/reference."""
    assert write_report(records, tmp_path).read_text(encoding="utf-8") == REPORT.read_text(encoding="utf-8")


def test_the_readme_shows_the_summary_and_figures_of_the_report() -> None:
    """Its numbers are compared with the records in tests/scripts/docs/test_tables.py."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ("table", "reference-summary") in names(readme)
    figures = re.findall(r"(results/reference/[\w/-]+\.svg)", readme)
    assert figures
    assert all((ROOT / figure).is_file() for figure in figures)
