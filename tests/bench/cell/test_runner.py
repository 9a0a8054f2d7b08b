"""What a method tells of itself, from its `diagnostics()` to the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.cell import runner
from bench.cell.measurements import ExperienceCost, Measurements
from bench.probes.sizes import Size
from bench.probes.training import Phases
from bench.record import RECORD_NAME, Diagnostic, Record, read
from methods.joint import Joint
from methods.ncm import Ncm

MEANINGS = {
    "evaluations": "How often it was evaluated so far.",
    "per_block": "A number for each block.",
    "choices": "Share of an experience's images that were given each prompt.",
}


@pytest.fixture
def run(cli: Callable[..., Any], tmp_path: Path) -> Callable[[str], Record]:
    """Run a method on three tasks and read its record."""

    def record_of(method: str) -> Record:
        grid = ("--methods", method, "--scale", "smoke", "--seeds", "0", "--tasks", "3")
        cli("run", *grid, "--weights", "random", "--set", "protocol.epochs=1")
        (path,) = (tmp_path / "results").glob(f"{method}*/{RECORD_NAME}")
        return read(path)

    return record_of


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Make a method count its evaluations and tell how many there were."""

    def install(method: type) -> None:
        seen: list[None] = []
        told = {"evaluations": lambda: float(len(seen)), "per_block": lambda: [len(seen) + 0.5, 0.25]}
        monkeypatch.setattr(method, "after_eval", lambda self, strategy: seen.append(None))
        monkeypatch.setattr(method, "diagnostics", lambda self: {name: tell() for name, tell in told.items()})
        monkeypatch.setattr(method, "describes", MEANINGS)

    return install


@pytest.fixture
def record_after(monkeypatch: pytest.MonkeyPatch, run: Any) -> Callable[..., Record]:
    """The record of a cell whose method told this after each of three tasks."""

    def record_of(*told: dict[str, Any]) -> Record:
        correct: list[list[int | None]] = [[1, None, None], [1, 1, None], [1, 1, 1]]
        spent = ExperienceCost(1.0, Phases(0.5, 0.25, 8), None, 1.0, 1, Size(1, 4), Size(1, 4), 9)
        outcome = Measurements(
            "2025-01-31T12:00:00+00:00",
            [2, 2, 2],
            correct,
            [spent] * 3,
            diagnostics=[*told],
            meanings=MEANINGS,
        )
        monkeypatch.setattr(runner, "learn", lambda *arguments: outcome)
        found: Record = run("ncm")
        return found

    return record_of


def test_a_method_is_asked_after_each_evaluation(run: Any, count: Any) -> None:
    count(Ncm)
    assert run("ncm").diagnostics == {
        "evaluations": Diagnostic(meaning=MEANINGS["evaluations"], values=[1.0, 2.0, 3.0]),
        "per_block": Diagnostic(
            meaning=MEANINGS["per_block"], values=[[1.5, 0.25], [2.5, 0.25], [3.5, 0.25]]
        ),
    }


def test_a_method_is_asked_where_it_is_not_evaluated_too(run: Any, count: Any) -> None:
    count(Joint)
    assert run("joint").diagnostics["evaluations"].values == [0.0, 0.0, 1.0]


def test_what_an_experience_lacks_is_null(record_after: Any) -> None:
    found = record_after({"evaluations": None}, {"evaluations": 1.0, "per_block": [0.5]}, {}).diagnostics
    assert found["evaluations"].values == [None, 1.0, None]
    assert found["per_block"].values == [None, [0.5], None]


def test_a_table_grows_with_the_experiences(record_after: Any) -> None:
    last = [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]]
    found = record_after({"choices": [[1.0]]}, {}, {"choices": last}).diagnostics
    assert found == {"choices": Diagnostic(meaning=MEANINGS["choices"], values=[[[1.0]], None, last])}


def test_nothing_to_tell_is_null(record_after: Any) -> None:
    record = record_after({}, {}, {})
    assert record.done
    assert record.diagnostics is None


NAN = float("nan")
WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nan": ([{"per_block": [1.0, NAN]}, {}, {}], "returns 'per_block' in a form that cannot"),
    "two kinds": ([{}, {"per_block": 1.0}, {"per_block": [1.0]}], "several kinds: a list of 1, a number"),
    "ragged": (
        [{}, {"choices": [[1.0], [0.5, 0.5]]}, {}],
        "different lengths: 1, 2); return a finite number, a list with one for each block, a table with",
    ),
    "not tested yet": ([{"choices": [[1.0], [1.0]]}, {}, {}], "legal: at most 1"),
    "unexplained": ([{}, {}, {"fwt": 1.0}], "returns 'fwt', which its `diagnostic_help` does not explain"),
}


@pytest.mark.parametrize(("told", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_recorded_is_the_fault_of_the_cell(
    told: list[dict[str, Any]], complaint: str, record_after: Any
) -> None:
    record = record_after(*told)
    assert record.status == "failed"
    assert complaint in record.reason
    assert record.diagnostics is None
