"""The pages hold the numbers of the reference runs, and each number is what its sentence says."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from methods.errors import UsageError
from scripts.docs import tables
from scripts.docs.markers import names
from scripts.docs.tables import PAGES, REFERENCE, ROOT, Reference


@pytest.fixture(scope="module")
def reference() -> Reference:
    return tables.load(REFERENCE)


def cells(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_every_page_holds_what_the_records_give(reference: Reference) -> None:
    """Write the pages again with: python -m scripts.docs.tables."""
    assert [page.name for page in tables.outdated(PAGES, reference)] == []


def test_every_content_is_used_by_a_page(reference: Reference) -> None:
    used = {marker for page in PAGES for marker in names(page.read_text(encoding="utf-8"))}
    contents = tables.contents(reference)
    assert used == {(kind, name) for kind, texts in contents.items() for name in texts}


def test_the_summary_has_the_method_and_five_columns_of_the_report(reference: Reference) -> None:
    report = (REFERENCE / "report" / "report.md").read_text(encoding="utf-8")
    rows = cells(tables.summary(reference))
    assert len(rows) == 9
    for method, row in rows.items():
        assert len(row) == 5
        (line,) = re.findall(rf"^\| [—\d]+ \| {method} \| {re.escape(row[0])} \|.*$", report, re.MULTILINE)
        assert all(f"| {cell} |" in line for cell in row)


def test_the_headline_is_the_reports(reference: Reference) -> None:
    report = (REFERENCE / "report" / "report.md").read_text(encoding="utf-8")
    for benchmark in ("cifar100", "digits"):
        assert tables.headline(benchmark)(reference) in report


def test_differences_are_by_seed_on_the_same_class_orders(reference: Reference) -> None:
    values = tables.differences("duallora", "inflora")(reference)
    by_hand = []
    for seed in (0, 1, 2):
        records = {r.method: r for r in reference.groups["cifar100"].records if r.seed == seed}
        a, b = ((r.metrics or {})["accuracy"] for r in (records["duallora"], records["inflora"]))
        assert records["duallora"].class_order == records["inflora"].class_order
        by_hand.append(100 * (a - b))
    assert values == pytest.approx(by_hand)
    assert tables.mean_difference("duallora", "inflora")(reference).startswith(
        f"{statistics.mean(by_hand):.2f} ± "
    )
    assert tables.wins("duallora", "inflora")(reference) == f"{sum(v > 0 for v in by_hand)} of 3"


def test_growth_is_of_the_first_and_the_last_task(reference: Reference) -> None:
    record = next(r for r in reference.groups["cifar100"].records if r.method == "ncm")
    costs = tables.costs(reference.row("cifar100", "ncm"), -1)
    assert record.cost is not None
    assert record.cost.experiences[-1] in costs
    row = cells(tables.growth(reference))["ncm"]
    assert float(row[3]) == pytest.approx(
        statistics.mean(cost.eval_seconds or 0 for cost in costs), abs=0.005
    )


def test_a_method_that_was_not_run_is_answered_with_a_sentence(reference: Reference) -> None:
    with pytest.raises(UsageError, match="no cell of 'l3p' on 'digits'"):
        reference.row("digits", "l3p")


def test_a_changed_page_is_named_and_written_again(reference: Reference, tmp_path: Path) -> None:
    page = tmp_path / "duallora.md"
    shutil.copy(ROOT / "docs" / "duallora.md", page)
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("| duallora |", "| duallora | 99 |"), encoding="utf-8")
    assert tables.outdated([page], reference) == {page: right}


def test_the_command_says_how_it_is_used() -> None:
    command = [sys.executable, "-m", "scripts.docs.tables", "--chekc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--check    name the pages that differ" in done.stderr
