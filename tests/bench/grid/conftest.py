"""Cells on the embedded digits, and a results folder for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cell.backbone import MICRO_NAME
from bench.cell.inputs import Inputs, Paths
from bench.grid.plan import PlannedCell, plan
from bench.spec import settings_from


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """With an empty results folder, and only the packaged data and weights."""
    results = tmp_path / "results"
    results.mkdir()
    return Inputs(Paths((tmp_path / "data",), None, results))


def cells(inputs: Inputs, *methods: str, skip_missing: bool = False, **values: Any) -> list[PlannedCell]:
    """The cells of these methods; of one seed, on digits, unless `values` say otherwise."""
    defaults = {"benchmarks": ["digits"], "seeds": [0], "backbone": MICRO_NAME}
    settings = settings_from({"methods": methods, **defaults, **values})
    paths = replace(inputs.paths, weights=settings.weights)
    return plan(settings, "cpu", Inputs(paths), skip_missing=skip_missing)
