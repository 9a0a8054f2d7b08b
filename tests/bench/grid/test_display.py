"""What a person sees: several cells at a time, on a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from bench.cell.inputs import Inputs
from bench.cell.progress import Notice, ProgressUpdate
from bench.grid.display import display
from bench.grid.plan import PlannedCell
from bench.record import Record
from tests.bench.grid.conftest import cells
from tests.bench.test_record import NO_RESULT, content

FAILED = {**NO_RESULT, "cost": None}


def record_of(planned: PlannedCell, **changes: Any) -> Record:
    return Record.model_validate(content(method=planned.cell.method.label, **changes))


@pytest.fixture
def output(inputs: Inputs) -> Callable[..., str]:
    """What is printed while two cells run at a time and one of them fails."""

    def play(terminal: bool) -> str:
        first, second = cells(inputs, "ncm", "finetune")
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=200)
        seconds = {first.cell: 100.0, second.cell: 200.0}
        with display(console, [first, second], seconds, 2) as shown:
            for planned in (first, second):
                shown.cell_started(planned)
                shown.cell_progress(
                    planned.cell, ProgressUpdate("learning", 1, 5, epoch=1, epochs=3, loss=1.5)
                )
                shown.cell_progress(
                    planned.cell, ProgressUpdate("learning", 1, 5, epoch=2, epochs=3, loss=1.25)
                )
            shown.cell_progress(second.cell, Notice("it continues after task 3 of 5"))
            shown.cell_finished(first.cell, record_of(first))
            shown.cell_finished(second.cell, record_of(second, status="failed", reason="it broke", **FAILED))
            shown.notify(Notice("another command is timing inference; waiting for it"))
            shown.session_started([first.cell])
            shown.session_progress(ProgressUpdate("2 models in turns, batch 1", 1, 2, steps="part"))
        return out.getvalue()

    return play


def test_a_log_has_a_line_for_each_step_that_names_its_cell(output: Callable[..., str]) -> None:
    lines = output(terminal=False).splitlines()
    assert lines[:4] == [
        "[1/2] ncm · digits · seed 0",
        "        task 1/5 · learning · epoch 1/3 · loss 1.500",
        "[2/2] finetune · digits · seed 0",
        "        finetune · digits · seed 0: task 1/5 · learning · epoch 1/3 · loss 1.500",
    ]
    assert lines[4] == "finetune · digits · seed 0: it continues after task 3 of 5"
    assert lines[5].startswith("   done  ncm · digits · seed 0: accuracy ")
    assert lines[6] == " failed  finetune · digits · seed 0: it broke"
    assert lines[7:] == [
        "another command is timing inference; waiting for it",
        "measuring inference · ncm · digits · seed 0",
        "        part 1/2 · 2 models in turns, batch 1",
    ]


def test_a_terminal_has_a_bar_for_each_cell_and_shows_what_is_left(output: Callable[..., str]) -> None:
    text = output(terminal=True)
    assert "finetune · digits · seed 0: it continues after task 3 of 5" in text
    assert "1 done · 1 not done · 0 running · 0 to go" in text
    assert "it broke" in text


def test_the_time_left_is_that_of_the_cells_that_are_not_done(inputs: Inputs) -> None:
    first, second = cells(inputs, "ncm", "finetune")
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with display(console, [first, second], {first.cell: 600.0, second.cell: 1200.0}, 1) as shown:
        bar = shown.progress.tasks[0]  # type: ignore[attr-defined]
        assert bar.fields["status"] == "0 done · 0 not done · 0 running · 2 to go · about 30 min left"
        shown.cell_started(first)
        shown.cell_finished(first.cell, record_of(first))
        assert bar.fields["status"] == "1 done · 0 not done · 0 running · 1 to go · about 20 min left"
    with display(console, [first, second], {first.cell: 600.0}, 1) as shown:
        assert "left" not in shown.progress.tasks[0].fields["status"]  # type: ignore[attr-defined]
