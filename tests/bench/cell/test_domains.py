"""A cell of a stream of domains, from its plan to its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import predictions
from bench.benchmarks.base import NO_DOMAIN
from bench.cell import runner
from bench.cell.inputs import Inputs, paths_from
from bench.cell.progress import ignore
from bench.cell.runner import run_cell
from bench.grid.plan import plan
from bench.record import Record
from bench.spec import Cell, settings_from
from methods.errors import UsageError
from methods.registry import METHODS
from tests.bench.cell.conftest import CONTEXT

NAMES = ["plain", "thick", "inverted", "rotated", "checkered"]


def planned(method: str, results: Path, **changes: Any) -> tuple[Cell, Inputs]:
    """A small cell of the drawn digits, on random weights."""
    values = {"methods": (method,), "benchmarks": ("digits-domains",), "seeds": (1,), "scale": "smoke"}
    settings = settings_from(values | {"weights": "random", "results": results} | changes)
    inputs = Inputs(paths_from(settings))
    (item,) = plan(settings, "cpu", inputs, skip_missing=False)
    results.mkdir(exist_ok=True)
    return item.cell, inputs


def run(method: str, results: Path, **changes: Any) -> tuple[Record, Any]:
    cell, inputs = planned(method, results, **changes)
    result = run_cell(cell, inputs.paths, CONTEXT, ignore)
    assert result.predictions is not None, result.record.reason
    folder = results / "cell"
    folder.mkdir()
    assert result.record.predictions is not None
    (folder / result.record.predictions.file).write_bytes(result.predictions)
    return result.record, predictions.read(result.record.predictions, folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_all_domains_and_is_tested_on_all_of_them(method: str, tmp_path: Path) -> None:
    record, read = run(method, tmp_path / "results")
    assert record.scenario == "domain-incremental"
    assert sorted(record.domains or []) == sorted(NAMES)
    assert record.counts == [20] * 5  # ten classes, two images each
    jointly = METHODS[method].load().trains_jointly
    whole = [all(value is not None for value in row) for row in record.correct or []]
    assert whole == [not jointly] * 4 + [True]
    assert (read.predicted[-1] != read.not_evaluated).all()
    assert sum(value or 0 for value in (record.correct or [])[-1]) == (read.predicted[-1] == read.true).sum()


def test_the_order_of_the_domains_follows_the_seed_and_that_of_the_classes_does_not(tmp_path: Path) -> None:
    cells = [planned("ncm", tmp_path / "results", seeds=(seed,))[0] for seed in (0, 1, 1)]
    assert list(cells[0].domains or ()) == NAMES
    assert cells[1].domains == cells[2].domains != cells[0].domains
    assert {cell.class_order for cell in cells} == {tuple(range(10))}
    assert {cell.task_sizes for cell in cells} == {(10,) * 5}
    assert len({cell.split_sha256 for cell in cells}) == 1


def test_hits_are_counted_in_the_column_of_the_images_domain(tmp_path: Path) -> None:
    cell, inputs = planned("ncm", tmp_path / "results")
    split, dataset = inputs.split(cell), inputs.dataset(cell)
    names = [image.partition("/")[0] for image in dataset.test.take(split.test_rows).ids]
    assert [(cell.domains or ())[i] for i in split.test_experience] == names
    record, read = run("ncm", tmp_path / "other")
    for column, name in enumerate(record.domains or ()):
        of_domain = np.array(names) == name
        hits = (read.predicted[2] == read.true)[of_domain].sum()
        assert (record.correct or [])[2][column] == hits


def test_a_listed_order_is_one_of_domains(tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    order.write_text("\n".join(reversed(NAMES)))
    cell, _ = planned("ncm", tmp_path / "results", seeds=(0,), class_order=str(order))
    assert list(cell.domains or ()) == NAMES[::-1]
    order.write_text("plain\nthick\n")
    with pytest.raises(UsageError, match="must name each of the 5 domains once"):
        planned("ncm", tmp_path / "results", class_order=str(order))


def test_its_record_resumes_and_keeps_its_id_when_classes_are_asked_for_by_name(tmp_path: Path) -> None:
    default, _ = planned("ncm", tmp_path / "results")
    named, _ = planned("ncm", tmp_path / "results", scenario="domain-incremental")
    classes, _ = planned("ncm", tmp_path / "results", scenario="class-incremental")
    assert default.id == named.id != classes.id
    assert (classes.domains, len(classes.task_sizes or ())) == (None, 5)
    assert classes.tasks == 5
    written = classes.model_dump(mode="json")
    assert not {"scenario", "domains"} & written.keys()


def test_resuming_gives_the_record_of_a_run_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, _ = run("finetune", tmp_path / "whole")
    cell, inputs = planned("finetune", tmp_path / "parted")

    def stop_after_two(*arguments: Any) -> None:
        runner.resume.save(*arguments)
        if arguments[-1].experiences == 2:
            raise KeyboardInterrupt

    first = run_cell(cell, inputs.paths, CONTEXT, ignore, stop_after_two)
    assert first.record.status == "interrupted"
    second = run_cell(cell, inputs.paths, CONTEXT, ignore).record
    assert second.manifest.resumed == [2]
    assert second.correct == whole.correct


def test_one_test_set_for_all_domains_is_one_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split_of = Inputs.split

    def without_domains(self: Inputs, cell: Cell) -> Any:
        split = split_of(self, cell)
        split.test_experience[:] = NO_DOMAIN
        return split

    monkeypatch.setattr(Inputs, "split", without_domains)
    record, _ = run("dualprompt", tmp_path / "results")
    assert record.counts == [100]
    assert [len(row) for row in record.correct or []] == [1] * 5
    assert record.metrics is not None
    assert record.metrics["forgetting"] is None
    assert record.metrics["accuracy"] == (record.correct or [])[-1][0] / 100  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": 4}, "has a task for each of its 5 domains .*, not 4; leave --tasks out"),
        ({"benchmarks": ("digits",), "scenario": "domain-incremental"}, "digits has no domain-incremental"),
        ({"methods": ("color:clusters=41",)}, "needs 41 training images in each task, and task 1 .* has 40"),
    ],
    ids=["tasks", "scenario", "clusters"],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        planned("ncm", tmp_path / "results", **changes)
