"""The page about a GPU, made of a CPU at the smallest size; no times are compared, and no GPU is imitated."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell.backbone import MICRO_NAME
from bench.cli import main as bench
from reports.text import DASH
from scripts.gpu import cells, checks, report
from scripts.gpu.cells import KEYWORD, TESTS, Setting
from scripts.gpu.checks import MIB, Check
from scripts.gpu.report import Findings
from tests.bench.in_process import executors, run_here

CPU = torch.device("cpu")
SMALL = Setting("ncm,finetune", MICRO_NAME, image_size=32, precision="fp32", classes=4, per_class=6)
JUNIT = "<testsuites><testsuite>{}</testsuite></testsuites>"
PASSED = '<testcase name="a" />'
SKIPPED = '<testcase name="b"><skipped /></testcase>'
FAILED = '<testcase name="c"><failure /></testcase>'


def here(words: Sequence[str], seconds: float, watch: Callable[[], object]) -> None:
    """As `cells.command`, in this process; of pytest, the file that it would write."""
    watch()
    if words[0] == "pytest":
        Path(words[-1]).write_text(JUNIT.format(PASSED))
        return
    assert bench(words[1:], executors(), start=lambda: run_here) == 0


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "results" / "page.md"
    report.write(CPU, SMALL, out, here)
    return out.read_text()


def rows(page: str, number: int) -> Iterator[list[str]]:
    """The lines of a table of the page."""
    tables = [part for part in page.split("\n\n") if part.startswith("| ")]
    for line in tables[number].splitlines()[2:]:
        yield line.strip("| ").split(" | ")


def test_where_there_is_no_gpu_a_sentence_says_so_and_the_command_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no GPU"):
        report.main(["--out", str(tmp_path / "page.md")])
    assert not list(tmp_path.iterdir())


def test_every_check_has_a_row(page: str) -> None:
    assert [row[0] for row in rows(page, 0)] == [
        *checks.CHECKS,
        "the tests that need a GPU",
        "--executor processes",
    ]


CERTAIN = (
    "energy, divided by time",
    "features under bf16, beside fp32",
    "a cell that is resumed",
    "kept features, computed and read",
    "the tests that need a GPU",
    "--executor processes",
)


@pytest.mark.parametrize("name", CERTAIN)
def test_what_depends_on_no_clock_is_as_expected(page: str, name: str) -> None:
    (row,) = (row for row in rows(page, 0) if row[0] == name)
    assert row[-1] == "yes", row


def test_every_method_has_a_row_with_its_measurements(page: str) -> None:
    by_method = {method: numbers for method, *numbers in rows(page, 1)}
    assert list(by_method) == ["ncm", "finetune"]
    for numbers in by_method.values():
        assert numbers[1] == "1.00"
        assert all(float(numbers[i].replace(",", "")) > 0 for i in (0, 3, 4))
    assert f"{MICRO_NAME}, random weights, 32 px, fp32, 4 classes" in page


# ---- checks ---------------------------------------------------------------------------------------------


def test_known_bytes_are_found_in_a_resident_set(tmp_path: Path) -> None:
    check = checks.memory(CPU, tmp_path)
    assert check.passed, check


@pytest.mark.parametrize(("found", "passed"), [(64 * MIB, True), (64 * MIB + 512, False), (0, False)])
def test_known_bytes_on_cuda_have_to_be_exact(found: int, passed: bool) -> None:
    tracker: Any = dataclasses.make_dataclass("Tracker", ["peak"])(
        dataclasses.make_dataclass("Peak", ["above"])(found)
    )
    check = checks.of_bytes(64 * MIB, tracker, torch.device("cuda"))
    assert (check.expected, check.passed) == ("64 MiB", passed)


@pytest.mark.parametrize(("found", "passed"), [(0.109, True), (0.091, True), (0.00002, False), (0.2, False)])
def test_two_clocks_of_one_kernel_have_to_agree(found: float, passed: bool) -> None:
    assert checks.of_seconds(0.1, found).passed is passed


@pytest.mark.parametrize("check", [checks.clock_of_inference, checks.clock_of_training])
def test_a_clock_measures_the_work_and_no_less(check: checks.Make, tmp_path: Path) -> None:
    assert float(check(CPU, tmp_path).found.removesuffix(" s")) >= checks.SLEEP


def test_logits_that_are_not_rounded_are_not_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "autocast", lambda device, precision: nullcontext())
    assert not checks.bfloat16(CPU, tmp_path).passed


def test_a_cell_that_starts_from_scratch_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopping(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "stopping", stopping)
    check = checks.resuming(CPU, tmp_path)
    assert not check.passed
    assert check.found.startswith("resumed after []")


def test_a_check_that_raises_has_failed_and_says_why() -> None:
    def broken() -> Check:
        raise RuntimeError("an illegal\naddress")

    assert checks.guarded(broken) == Check("no error", "RuntimeError: an illegal address", False)


# ---- commands -------------------------------------------------------------------------------------------


def test_a_command_is_ended_when_its_time_is_up() -> None:
    """The one test that starts a process as the script does; without an end it would take an hour."""
    watched: list[bool] = []
    cells.command(
        ["timeit", "-n1", "-r1", "import time; time.sleep(3600)"], 0.3, lambda: watched.append(True)
    )
    assert watched


@pytest.mark.parametrize(
    ("done", "least", "found", "passed"),
    [
        (4, [200, 300], "4 cells done, on 2 of 2 GPUs", True),
        (4, [200, 2000], "4 cells done, on 1 of 2 GPUs", False),
        (3, [200, 300], "3 cells done, on 2 of 2 GPUs", False),
    ],
)
def test_every_gpu_has_to_be_used(done: int, least: Sequence[int], found: str, passed: bool) -> None:
    check = cells.on_every_gpu(4, done, [2000 * MIB] * 2, [n * MIB for n in least])
    assert check == Check("4 cells done, on 2 of 2 GPUs", found, passed)


def test_free_memory_is_read_before_the_cells_are_run_and_meanwhile(tmp_path: Path) -> None:
    readings = iter([[2000 * MIB], [300 * MIB], [1000 * MIB]])

    def run(words: Sequence[str], seconds: float, watch: Callable[[], object]) -> None:
        watch()
        watch()

    check = cells.every_gpu(CPU, tmp_path, 60.0, run, lambda: next(readings))
    assert check == Check("2 cells done, on 1 of 1 GPUs", "0 cells done, on 1 of 1 GPUs", False)


@pytest.mark.parametrize(
    ("cases", "found", "passed"),
    [
        ([PASSED, PASSED], "2 passed", True),
        ([PASSED, SKIPPED], "1 passed, 1 skipped", False),
        ([FAILED], "1 failed", False),
        ([], "none ran", False),
    ],
)
def test_the_tests_that_need_a_gpu_have_to_pass_and_to_run(
    cases: Sequence[str], found: str, passed: bool, tmp_path: Path
) -> None:
    def run(words: Sequence[str], seconds: float, watch: Callable[[], object]) -> None:
        assert words[:2] == ["pytest", str(TESTS)]
        Path(words[-1]).write_text(JUNIT.format("".join(cases)))

    assert cells.waiting_tests(tmp_path, 60.0, run) == Check("all passed", found, passed)


def test_a_test_run_that_did_not_end_has_no_outcome(tmp_path: Path) -> None:
    check = cells.waiting_tests(tmp_path, 0.0, lambda words, seconds, watch: None)
    assert check == Check("all passed", "none ran", False)


def needs_cuda(function: ast.FunctionDef) -> bool:
    return any("cuda.is_available" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_tests_that_need_a_gpu_are_found_by_their_names() -> None:
    trees = [ast.parse(path.read_text()) for path in TESTS.rglob("test_*.py")]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    waiting = {function.name for function in functions if needs_cuda(function)}
    assert len(waiting) >= 2
    assert waiting == {function.name for function in functions if KEYWORD in function.name}


# ---- what was not reached -------------------------------------------------------------------------------


def test_a_method_without_a_cell_has_dashes_and_fails_the_command(tmp_path: Path) -> None:
    records = cells.full_size(SMALL, CPU, tmp_path, 0.0, lambda words, seconds, watch: None)
    assert records == {"ncm": None, "finetune": None}
    assert cells.row("ncm", None) == ["ncm (not reached in the time there is)", *[DASH] * 6]
    assert not Findings({}, records).passed


def test_a_check_that_is_not_as_expected_fails_the_command() -> None:
    good, bad = Check("a", "a", True), Check("a", "b", False)
    assert Findings({"x": good}, {}).passed
    assert not Findings({"x": good, "y": bad}, {}).passed
