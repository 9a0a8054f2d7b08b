"""How long cells will take: told by cells like them, and by no others."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cell.backbone import MICRO_NAME
from bench.grid.estimate import in_words, longest_first, schedule, seconds_by_cell, seconds_of
from bench.grid.plan import PlannedCell, plan
from bench.record import Record
from bench.spec import settings_from
from tests.bench.test_record import COST, MANIFEST, content


def planned(*methods: str, **values: Any) -> list[PlannedCell]:
    given = {"methods": methods, "benchmarks": ["digits"], "seeds": [0], "backbone": MICRO_NAME, **values}
    return plan(settings_from(given), skip_missing=False)


def took(item: PlannedCell, seconds: int, **changes: Any) -> Record:
    """The record of a cell that took so many seconds, less than a minute."""
    manifest = MANIFEST | {"ended": f"2025-01-31T12:00:{seconds:02d}+00:00"} | changes
    cost = COST | {"train_seconds": [1.5, 2.5], "eval_seconds": [0.5, None]}
    whole = content(config=item.cell.model_dump(mode="json"), manifest=manifest, cost=cost)
    return Record.model_validate(whole)


def test_other_seeds_tell_and_other_scales_and_protocols_do_not() -> None:
    (past,), (other,), (again,) = (
        planned("finetune"),
        planned("finetune", scale="smoke"),
        planned("finetune", seeds=[5]),
    )
    (longer,) = planned("finetune", protocol_options={"epochs": 99})
    records = [took(past, 20), took(past, 40), took(other, 7)]
    assert seconds_by_cell([again, longer], records) == {again.cell: 30}


def test_other_settings_of_a_method_tell_where_nothing_nearer_does() -> None:
    (rank,), (plain,), (other,) = planned("finetune:rank=4"), planned("finetune"), planned("ncm")
    assert seconds_by_cell([plain, other], [took(rank, 20)]) == {plain.cell: 20}
    assert seconds_by_cell([plain], [took(rank, 20), took(plain, 50)]) == {plain.cell: 50}


def test_a_break_is_not_time_that_a_cell_took() -> None:
    (item,) = planned("finetune")
    assert seconds_of(took(item, 50)) == 50
    assert seconds_of(took(item, 50, resumed=[1])) == 1.5 + 2.5 + 0.5


def test_failed_cells_tell_nothing() -> None:
    (item,) = planned("finetune")
    results = dict.fromkeys(("correct", "counts", "accuracy_matrix", "metrics", "diagnostics", "cost"))
    failed = content(config=item.cell.model_dump(mode="json"), status="failed", reason="it broke", **results)
    assert seconds_by_cell([item], [Record.model_validate(failed)]) == {}


def test_the_longest_come_first_and_those_not_known_before_them() -> None:
    items = planned("ncm", "finetune", "joint", "l2p")
    ncm, finetune, joint, l2p = (item.cell for item in items)
    ordered = longest_first(items, {ncm: 1.0, finetune: 3.0, joint: 2.0})
    assert [item.cell for item in ordered] == [l2p, finetune, joint, ncm]
    assert longest_first(items, {}) == items


@pytest.mark.parametrize(("workers", "seconds"), [(1, 10.0), (2, 5.0), (3, 4.0), (9, 4.0)])
def test_cells_are_begun_as_workers_come_free(workers: int, seconds: float) -> None:
    items = planned("ncm", "finetune", "joint", "l2p")
    known = dict(zip((item.cell for item in items), (4.0, 3.0, 1.0, 2.0), strict=True))
    assert schedule(longest_first(items, known), known, workers) == seconds
    assert schedule(items, {}, workers) == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (12000, "3 h 20 min")]
)
def test_durations_read_as_one_says_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
