"""Two commands on one results folder share the work."""

from __future__ import annotations

import re

from tests.faults.commands import check_predictions, done_files, facts, grid_of, on_disk, record_of

STARTED = re.compile(r"^\[\d/\d\] (\S+) ·", re.MULTILINE)
RUN_ELSEWHERE = re.compile(r"^(\S+)-digits-s0-[0-9a-f]{12}: another command has run it$", re.MULTILINE)
RUN_HERE = re.compile(r"^   done  (\S+) · digits · seed 0: accuracy [\d.]+ %, \d+ s$", re.MULTILINE)


def test_two_grids_at_once_run_each_cell_once(start, whole, drill):
    commands = [start(*grid_of("finetune,ncm")) for _ in range(2)]
    ended = [command.result() for command in commands]
    assert [result.status for result in ended] == [0, 0], "\n".join(result.output for result in ended)
    output = "\n".join(result.output for result in ended)
    names = ["finetune", "ncm"]
    assert sorted(STARTED.findall(output)) == names
    assert sorted(RUN_HERE.findall(output)) == names
    done_before = sum(int(n) for n in re.findall(r"cells: 2; (\d) done before", output))
    assert len(RUN_ELSEWHERE.findall(output)) + done_before == len(names)
    assert output.count("measuring inference ·") == 1
    results = commands[0].results
    assert on_disk(results) == done_files("finetune", "ncm")
    check_predictions(results)
    expected = whole("finetune,ncm").facts
    assert {name: facts(record_of(results, name)) for name in expected} == expected
    drill(
        "two grids at once on one folder", "each cell was run once, by one of them", "has nothing left to do"
    )
