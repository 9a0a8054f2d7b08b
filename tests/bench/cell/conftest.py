"""Cells that are planned as a command plans them, and run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.cell.inputs import Inputs, paths_from
from bench.cell.manifest import RunContext
from bench.grid.plan import plan
from bench.spec import Cell, settings_from

CONTEXT = RunContext(command=None, executor="serial", workers=1, threads=1)


def plan_cell(method: str, results: Path, **changes: Any) -> tuple[Cell, Inputs]:
    """A small cell of digits in three tasks, on random weights; `changes` are fields of `Settings`."""
    values = {
        "methods": (method,),
        "benchmarks": ("digits",),
        "seeds": (1,),
        "tasks": 3,
        "scale": "smoke",
        "weights": "random",
        "results": results,
    }
    options = [("protocol.epochs", 1), ("protocol.augmentation", "crop-flip")]
    settings = settings_from(values | changes, options)
    inputs = Inputs(paths_from(settings))
    (planned,) = plan(settings, "cpu", inputs, skip_missing=False)
    results.mkdir(exist_ok=True)
    return planned.cell, inputs
