"""Tasks from which a method learns nothing are told of: by their sizes and the loss, and as observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.cell.one_class import untaught_tasks, warn_of_one_class, warn_of_zero_loss
from bench.cell.progress import ignore
from bench.cell.runner import run_cell
from bench.grid.plan import PlannedCell, notes_on_tasks
from methods.head import mask_logits
from methods.linear_probe import LinearProbe
from methods.registry import METHODS
from tests.bench.cell.conftest import CONTEXT, plan_cell

LEARN = {"joint", "ncm"}


def sized(method: str, sizes: tuple[int, ...], folder: Path) -> Any:
    cell, _ = plan_cell(method, folder)
    return cell.model_copy(update={"tasks": len(sizes), "task_sizes": sizes})


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_knows_whether_one_class_teaches_it(method: str, tmp_path: Path) -> None:
    """The test of learning below shows the same of two of them."""
    cell = sized(method, (2, 1, 3, 1), tmp_path)
    assert untaught_tasks(cell) == ([] if method in LEARN else [2, 4])


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1, 1, 1), "each task has a single class"),
        ((1,), "the only task has a single class"),
        ((2, 2, 1), "task 3 of 3 has a single class"),
        ((2, 1, 1), "tasks 2, 3 of 3 have a single class"),
    ],
)
def test_the_warning_names_the_tasks(sizes: tuple[int, ...], words: str, tmp_path: Path) -> None:
    (warning,) = warn_of_one_class(sized("finetune", sizes, tmp_path))
    assert warning.startswith(words)


def test_tasks_of_several_classes_are_no_matter(tmp_path: Path) -> None:
    assert warn_of_one_class(sized("finetune", (2, 3), tmp_path)) == []


def test_the_plan_names_the_methods_once(tmp_path: Path) -> None:
    cells = [sized(method, (2, 1), tmp_path) for method in ("finetune", "ncm", "l2p", "finetune")]
    (note,) = notes_on_tasks([PlannedCell(cell) for cell in cells])
    assert note.startswith("warning: digits: task 2 of 2 has a single class")
    assert note.endswith("(finetune, l2p)")


def warnings_of(method: str, tasks: int, folder: Path) -> list[str]:
    cell, inputs = plan_cell(method, folder, tasks=tasks)
    record = run_cell(cell, inputs.paths, CONTEXT, ignore).record
    assert record.done
    return record.manifest.warnings


def test_the_record_warns_of_a_method_that_learns_nothing_and_of_no_other(tmp_path: Path) -> None:
    (warning,) = [text for text in warnings_of("linear-probe", 9, tmp_path / "a") if "learn" in text]
    assert warning.startswith("tasks 2, 3, 4, 5, 6, 7, 8, 9 of 9 have a single class")
    assert not [text for text in warnings_of("ncm", 10, tmp_path / "b") if "class" in text]


def test_a_loss_that_was_zero_is_observed_whatever_the_method_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a method of another package that masks the logits itself."""

    def after_forward(self: Any, strategy: Any, **kwargs: Any) -> None:
        strategy.mb_output = mask_logits(strategy.mb_output, self.current)

    monkeypatch.setattr(LinearProbe, "after_forward", after_forward)
    warnings = warnings_of("linear-probe", 9, tmp_path)
    assert (
        "the loss was exactly 0 at every step of task 2, 3, 4, 5, 6, 7, 8, 9 (of 9): it taught nothing there"
        in warnings
    )
    assert not any("single class" in text for text in warnings)


def test_what_was_to_be_expected_is_not_told_twice(tmp_path: Path) -> None:
    cell = sized("finetune", (2, 1, 2), tmp_path)
    assert warn_of_zero_loss(cell, [2]) == []
    (warning,) = warn_of_zero_loss(cell, [2, 3])
    assert "every step of task 3 (of 3)" in warning
