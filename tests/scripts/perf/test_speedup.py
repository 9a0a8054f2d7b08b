"""What the scripts that measure grids make of what they measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.record import Record, read
from scripts.perf import growth
from scripts.perf import speedup as spread


def test_ways_are_compared_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is three times as slow in the second round changes no ratio."""
    taken = {"serial": 60.0, "serial, one thread": 80.0, "processes": 40.0, "ray": 48.0}
    rounds = dict.fromkeys(taken, 0)

    def took(grid: str, way: str, cells: int) -> float:
        (name,) = (name for name, options in spread.WAYS.items() if options == way)
        rounds[name] += 1
        return taken[name] * (1, 3)[rounds[name] - 1]

    monkeypatch.setattr(spread, "count", lambda grid: 4)
    monkeypatch.setattr(spread, "seconds_until_trained", took)
    lines = spread.measure("--seeds 0", rounds=2).splitlines()
    assert lines[0] == "4 cells: `--seeds 0`"
    assert [line.strip("| ").split(" | ") for line in lines[4:]] == [
        ["serial", "120", "1.00, 1.00", "1.00"],
        ["serial, one thread", "160", "0.75, 0.75", "0.75"],
        ["processes", "80", "1.50, 1.50", "1.50"],
        ["ray", "96", "1.25, 1.25", "1.25"],
    ]


def test_a_grid_is_counted_by_what_a_dry_run_says() -> None:
    assert spread.count("--methods ncm,finetune --benchmarks digits --seeds 0,1,2 --scale smoke") == 6


def test_what_grows_is_what_the_cell_had(monkeypatch: pytest.MonkeyPatch) -> None:
    had: list[Record] = []

    def watched(results: Path, *options: str) -> list[Path]:
        paths = run(results, *options)
        had.extend(map(read, paths))
        return paths

    run = growth.run
    monkeypatch.setattr(growth, "run", watched)
    *_, line = growth.grown("tasks", (2,), "ncm", classes=4).strip().splitlines()
    tasks, method, *numbers = line.strip("| ").split(" | ")
    (record,) = had
    assert record.cost is not None
    assert record.cost.train_seconds is not None
    assert (tasks, method) == ("2", "ncm")
    assert record.class_order is not None
    assert (len(record.class_order), len(record.cost.train_seconds)) == (4, 2)
    assert numbers[:2] == [f"{sum(record.cost.train_seconds):.1f}", f"{record.cost.train_seconds[-1]:.1f}"]
