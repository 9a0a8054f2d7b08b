"""What a person sees: several cells at a time, on a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from bench.cell.backbone import MICRO_NAME
from bench.cell.progress import Notice, ProgressUpdate
from bench.grid.display import display
from bench.grid.plan import PlannedCell, plan
from bench.record import Record
from bench.spec import settings_from
from tests.bench.test_record import content

FAILED = dict.fromkeys(("correct", "counts", "accuracy_matrix", "metrics", "diagnostics", "cost"))


def cells() -> list[PlannedCell]:
    given = {"methods": ["ncm", "finetune"], "benchmarks": ["digits"], "seeds": [0], "backbone": MICRO_NAME}
    return plan(settings_from(given), skip_missing=False)


def ended(planned: PlannedCell, **changes: Any) -> Record:
    return Record.model_validate(content(method=planned.cell.method.label, **changes))


@pytest.fixture
def seen() -> Callable[..., str]:
    """What is printed while two cells run beside each other and one of them fails."""

    def play(terminal: bool) -> str:
        first, second = cells()
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=200)
        known = {first.cell: 100.0, second.cell: 200.0}
        with display(console, [first, second], known, 2) as shown:
            for planned in (first, second):
                shown.start(planned)
                shown.tick(planned.cell, ProgressUpdate("learning", 1, 5, epoch=1, epochs=3, loss=1.5))
                shown.tick(planned.cell, ProgressUpdate("learning", 1, 5, epoch=2, epochs=3, loss=1.25))
            shown.tick(second.cell, Notice("it goes on after experience 3 of 5"))
            shown.end(first.cell, ended(first))
            shown.end(second.cell, ended(second, status="failed", reason="it broke", **FAILED))
            shown.notify(Notice("another command is timing inference; waiting for it"))
            shown.measure([first.cell])
            shown.measuring(ProgressUpdate("2 models in turns, batch 1", 1, 2, steps="part"))
        return out.getvalue()

    return play


def test_a_log_has_a_line_for_each_step_and_says_whose_it_is(seen: Callable[..., str]) -> None:
    lines = seen(terminal=False).splitlines()
    assert lines[:4] == [
        "[1/2] ncm · digits · seed 0",
        "        experience 1/5 · learning · epoch 1/3 · loss 1.500",
        "[2/2] finetune · digits · seed 0",
        "        finetune · digits · seed 0: experience 1/5 · learning · epoch 1/3 · loss 1.500",
    ]
    assert lines[4] == "finetune · digits · seed 0: it goes on after experience 3 of 5"
    assert lines[5].startswith("   done  ncm · digits · seed 0: accuracy ")
    assert lines[6] == " failed  finetune · digits · seed 0: it broke"
    assert lines[7:] == [
        "another command is timing inference; waiting for it",
        "measuring inference · ncm · digits · seed 0",
        "        part 1/2 · 2 models in turns, batch 1",
    ]


def test_a_terminal_has_a_bar_for_each_cell_and_tells_what_is_left(seen: Callable[..., str]) -> None:
    text = seen(terminal=True)
    assert "finetune · digits · seed 0: it goes on after experience 3 of 5" in text
    assert "1 done · 1 not done · 0 running · 0 to go" in text
    assert "it broke" in text


def test_the_time_left_is_that_of_the_cells_that_are_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = cells()
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with display(console, [first, second], {first.cell: 600.0, second.cell: 1200.0}, 1) as shown:
        bar = shown.progress.tasks[0]  # type: ignore[attr-defined]
        assert bar.fields["status"] == "0 done · 0 not done · 0 running · 2 to go · about 30 min left"
        shown.start(first)
        shown.end(first.cell, ended(first))
        assert bar.fields["status"] == "1 done · 0 not done · 0 running · 1 to go · about 20 min left"
    with display(console, [first, second], {first.cell: 600.0}, 1) as shown:
        assert "left" not in shown.progress.tasks[0].fields["status"]  # type: ignore[attr-defined]
