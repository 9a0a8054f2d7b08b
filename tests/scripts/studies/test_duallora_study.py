"""The study of gates and posteriors: every combination has a row, and an oracle is an upper bound."""

from __future__ import annotations

import csv

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
    study.main([*GRID, "--methods", "duallora", "--csv", str(out)])
    with out.open() as file:
        return list(csv.DictReader(file))


def test_every_gate_is_tested_with_every_posterior(rows):
    assert tuple(rows[0]) == study.COLUMNS
    by_gate = [[row for row in rows if row["gate"] == gate] for gate in study.GATES]
    assert {len(of_gate) for of_gate in by_gate} == {len(rows) // len(study.GATES)}
    assert {row["posterior"] for row in rows} >= {"none", "oracle", "softmax, tau 0.3", "hard, tau 0.3"}


def test_knowing_the_experience_is_an_upper_bound(rows):
    for gate in study.GATES:
        accuracy = {row["posterior"]: float(row["accuracy"]) for row in rows if row["gate"] == gate}
        assert accuracy["oracle"] == max(accuracy.values())
        assert accuracy["oracle"] > accuracy["none"]


def test_without_a_file_to_write_it_prints_its_usage():
    with pytest.raises(SystemExit, match="--csv"):
        study.main(GRID)
