"""The scripts that run whole grids: how their tables follow from what they measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main
from bench.record import RECORD_NAME, Record, read
from methods.registry import METHODS
from scripts.perf import growth, speedup
from tests.bench.in_process import executors, run_here


def test_executors_are_compared_within_a_round() -> None:
    """A machine that is three times as slow in the second round changes no ratio."""
    seconds = {"serial": 60.0, "serial, one thread": 80.0, "processes": 40.0, "ray": 48.0}
    rounds = dict.fromkeys(seconds, 0)

    def run(grid: str, variant: str, cells: int) -> float:
        assert (grid, cells) == ("--seeds 0", 4)
        (name,) = (name for name, options in speedup.VARIANTS.items() if options == variant)
        rounds[name] += 1
        return seconds[name] * (1, 3)[rounds[name] - 1]

    times = speedup.measure("--seeds 0", 4, rounds=2, run=run)
    lines = speedup.report("--seeds 0", 4, times).splitlines()
    assert lines[0] == "4 cells: `--seeds 0`"
    assert [line.strip("| ").split(" | ") for line in lines[4:]] == [
        ["serial", "120", "1.00, 1.00", "1.00"],
        ["serial, one thread", "160", "0.75, 0.75", "0.75"],
        ["processes", "80", "1.50, 1.50", "1.50"],
        ["ray", "96", "1.25, 1.25", "1.25"],
    ]


def test_cells_are_counted_in_the_output_of_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "--methods ncm,finetune --benchmarks digits --seeds 0,1,2 --scale smoke --dry-run"
    assert main(["run", *grid.split(), "--results", str(tmp_path)], start=lambda: run_here) == 0
    assert speedup.cells_in(capsys.readouterr().out) == 6


def test_a_row_of_growth_has_the_numbers_of_the_cells_record() -> None:
    records: list[Record] = []

    def run(results: Path, *options: str) -> list[Path]:
        """As `growth.run`, in this process."""
        words = ["run", "--results", str(results), "--threads", "1", *options]
        assert main(words, executors(), start=lambda: run_here) == 0
        (path,) = results.glob(f"*/{RECORD_NAME}")
        records.append(read(path))
        return [path]

    *_, line = growth.scaling("tasks", (2,), "ncm", classes=4, run=run).strip().splitlines()
    tasks, method, *numbers = line.strip("| ").split(" | ")
    (record,) = records
    assert record.cost is not None
    seconds = record.cost.by_experience("train_seconds")
    assert (tasks, method) == ("2", "ncm")
    assert record.class_order is not None
    assert (len(record.class_order), len(seconds)) == (4, 2)
    assert numbers[:2] == [f"{sum(seconds):.1f}", f"{seconds[-1]:.1f}"]
    assert numbers[3] == f"{record.cost.experiences[-1].stored_bytes / 2**20:.2f}"


def test_planning_is_timed_by_a_dry_run_of_all_methods() -> None:
    """The one test that starts the command as the scripts do."""
    (line,) = growth.planning((1,)).splitlines()[2:]
    cells, seconds = line.strip("| ").split(" | ")
    assert int(cells) == len(METHODS)
    assert float(seconds) > 0
