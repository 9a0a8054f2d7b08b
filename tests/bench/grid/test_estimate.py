"""How long cells will take: estimated from similar cells, and from no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.cell.inputs import Inputs
from bench.grid.estimate import in_words, longest_first, schedule, seconds_by_cell, seconds_of
from bench.grid.plan import PlannedCell
from bench.record import Record, to_json
from tests.bench.grid.conftest import cells
from tests.bench.test_record import COST, MANIFEST, NO_RESULT, content

#: Seconds of training and of evaluation.
EXPERIENCES = [
    {"train_seconds": 1.5, "eval_seconds": 0.5},
    {"train_seconds": 2.5, "eval_seconds": None},
]


def took(item: PlannedCell, seconds: int, **changes: Any) -> Record:
    """The record of a cell that took so many seconds, less than a minute."""
    manifest = MANIFEST | {"ended": f"2025-01-31T12:00:{seconds:02d}+00:00"} | changes
    cost = COST | {"experiences": EXPERIENCES}
    plain = content(config=item.cell.model_dump(mode="json"), manifest=manifest, cost=cost)
    return Record.model_validate(json.loads(to_json(Record.model_validate(plain))))  # as it is on disk


def test_other_seeds_are_similar_and_other_scales_and_protocols_are_not(inputs: Inputs) -> None:
    (past,) = cells(inputs, "finetune")
    (other,) = cells(inputs, "finetune", scale="smoke")
    (again,) = cells(inputs, "finetune", seeds=[5])
    (longer,) = cells(inputs, "finetune", protocol_options={"epochs": 99})
    records = [took(past, 20), took(past, 40), took(other, 7)]
    assert seconds_by_cell([again, longer], records) == {again.cell: 30}


def test_other_settings_of_a_method_are_used_where_nothing_is_more_similar(inputs: Inputs) -> None:
    rank, plain, other = cells(inputs, "finetune:rank=4", "finetune", "ncm")
    assert seconds_by_cell([plain, other], [took(rank, 20)]) == {plain.cell: 20}
    assert seconds_by_cell([plain], [took(rank, 20), took(plain, 50)]) == {plain.cell: 50}


def test_a_break_is_not_time_that_a_cell_took(inputs: Inputs) -> None:
    (item,) = cells(inputs, "finetune")
    assert seconds_of(took(item, 50)) == 50
    assert seconds_of(took(item, 50, resumed=[1])) == 1.5 + 2.5 + 0.5


def test_failed_cells_are_not_used(inputs: Inputs) -> None:
    (item,) = cells(inputs, "finetune")
    config = item.cell.model_dump(mode="json")
    failed = content(config=config, status="failed", reason="it broke", cost=None, **NO_RESULT)
    assert seconds_by_cell([item], [Record.model_validate(failed)]) == {}


def test_the_longest_come_first_and_those_without_an_estimate_before_them(inputs: Inputs) -> None:
    items = cells(inputs, "ncm", "finetune", "joint", "l2p")
    ncm, finetune, joint, l2p = (item.cell for item in items)
    ordered = longest_first(items, {ncm: 1.0, finetune: 3.0, joint: 2.0})
    assert [item.cell for item in ordered] == [l2p, finetune, joint, ncm]
    assert longest_first(items, {}) == items


@pytest.mark.parametrize(("workers", "seconds"), [(1, 10.0), (2, 5.0), (3, 4.0), (9, 4.0)])
def test_cells_start_as_workers_become_free(workers: int, seconds: float, inputs: Inputs) -> None:
    items = cells(inputs, "ncm", "finetune", "joint", "l2p")
    each = dict(zip((item.cell for item in items), (4.0, 3.0, 1.0, 2.0), strict=True))
    assert schedule(longest_first(items, each), each, workers) == seconds
    assert schedule(items, {}, workers) == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (12000, "3 h 20 min")]
)
def test_durations_are_rounded_for_people(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
