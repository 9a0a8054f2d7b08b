from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO

from rich.console import Console

from bench.record import Record
from reports.groups import group
from reports.tables import headline
from reports.terminal import print_table

Make = Callable[..., Record]


def printed(records: list[Record], width: int = 250) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    print_table(records, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_the_same_table(records: list[Record]) -> None:
    output = printed(records)
    for g in group(records):
        assert g.title in output
        for row in headline(g).rows:
            assert any(all(cell in line for cell in row) for line in output.splitlines()), row


def test_on_a_narrow_terminal_no_number_is_cut_or_folded(records: list[Record]) -> None:
    output = printed(records, width=80)
    assert max(map(len, output.splitlines())) <= 80
    for g in group(records):
        for row in headline(g).rows:
            assert all(cell in output for cell in row), row


def test_failures_and_warnings_are_shown(records: list[Record]) -> None:
    output = printed(records)
    assert "not finished: l2p, seed 1: oom. The device ran out of memory." in output
    assert "warning: † contaminated" in output
    assert "One seed only" in output


def test_foreign_text_is_no_markup(make: Make) -> None:
    output = printed([make("[bold]a[/nope]\x1b[31m", tasks=1)])
    assert "[bold]a[/nope] [31m" in output
    assert "\x1b" not in output


def test_bold_places_are_bold_and_no_others(make: Make) -> None:
    cells = [make(name, seed, skill=skill) for name, skill in (("a", 0.9), ("b", 0.5)) for seed in range(3)]
    console = Console(file=StringIO(), width=250, force_terminal=True, color_system="standard")
    print_table(cells, console)
    assert isinstance(console.file, StringIO)
    (table,) = map(headline, group(cells))
    bold = {text.strip() for text in re.findall(r"\x1b\[1m(.*?)\x1b\[0m", console.file.getvalue())}
    assert (0, 2) in table.bold
    assert bold >= {table.rows[i][j] for i, j in table.bold}
    assert not bold & {cell for cell in table.rows[1] if "±" in cell}


def test_the_answer_stands_above_the_table(make: Make) -> None:
    output = printed([make("a", seed) for seed in range(2)])
    assert output.index("only a has a result") < output.index("rank")


def test_no_records(make: Make) -> None:
    assert printed([]).strip() == "no records to show"
