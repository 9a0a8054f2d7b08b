"""The study of gates and posteriors: every combination is there, and an oracle is an upper bound."""

from __future__ import annotations

import csv
import sys

import pytest

from scripts.studies import duallora_study as study

GRID = [
    "--benchmarks",
    "digits",
    "--scale",
    "smoke",
    "--seeds",
    "0",
    "--tasks",
    "3",
    "--eval-on",
    "validation",
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "study.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["study", *GRID, "--methods", "duallora", "--csv", str(out)])
        study.main()
    with out.open() as file:
        return list(csv.DictReader(file))


def test_every_gate_is_tested_with_every_posterior(rows):
    assert tuple(rows[0]) == study.COLUMNS
    by_gate = [[row for row in rows if row["gate"] == gate] for gate in study.GATES]
    assert {len(found) for found in by_gate} == {len(rows) // len(study.GATES)}
    assert {row["posterior"] for row in rows} >= {"none", "oracle", "softmax, tau 0.3", "hard, tau 0.3"}


def test_knowing_the_experience_is_an_upper_bound(rows):
    for gate in study.GATES:
        found = {row["posterior"]: float(row["accuracy"]) for row in rows if row["gate"] == gate}
        assert found["oracle"] == max(found.values())
        assert found["oracle"] > found["none"]


def test_without_a_file_to_write_it_says_how_it_is_used(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", *GRID])
    with pytest.raises(SystemExit, match="--csv"):
        study.main()
