"""The report's headline tables on a terminal: the same tables, another renderer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.record import Record
from reports import tables
from reports.groups import Group, group
from reports.tables import Table
from reports.text import clean

if TYPE_CHECKING:
    from rich.console import Console

#: Longer names are folded.
NAME_WIDTH = 30


def print_table(records: Sequence[Record], console: Console | None = None) -> None:
    """Print a headline table per benchmark and condition, with its warnings and notes.

    Raises:
        UsageError: if two records are of the same cell.
    """
    from rich.console import Console

    shown = console or Console()
    if not records:
        shown.print("no records to show")
    for g in group(records):
        _print_group(g, shown)


def _print_group(g: Group, console: Console) -> None:
    from rich.text import Text

    console.print(Text(clean(g.title), style="bold"))
    for part in _parts(_cleaned(tables.headline(g)), console.width):
        _print_part(part, console)
    for warning in tables.warnings(g):
        console.print(Text(f"warning: {clean(warning)}", style="yellow"))
    for sentence in tables.unfinished(g):
        console.print(Text(f"not finished: {clean(sentence)}", style="red"))
    for note in tables.notes(g):
        console.print(Text(clean(note), style="dim"))
    console.print()


def _cleaned(table: Table) -> Table:
    return Table(table.columns, tuple(tuple(map(clean, row)) for row in table.rows))


def _parts(table: Table, width: int) -> Iterator[Table]:
    """The table cut into parts that fit the terminal, each with the names: no number is folded."""
    widths = [_width(table, i) for i in range(len(table.columns))]
    room = width - 1 - _name_width(table)
    part: list[int] = []
    for i in range(1, len(widths)):
        if part and sum(widths[j] for j in part) + widths[i] > room:
            yield _picked(table, part)
            part = []
        part.append(i)
    yield _picked(table, part)


def _width(table: Table, column: int) -> int:
    """Characters a column needs: its titles break between words, its cells nowhere."""
    words = table.columns[column].split()
    return 2 + max(len(text) for text in (*words, *(row[column] for row in table.rows)))


def _name_width(table: Table) -> int:
    return min(_width(table, 0), NAME_WIDTH)


def _picked(table: Table, columns: Sequence[int]) -> Table:
    rows = tuple((row[0], *(row[i] for i in columns)) for row in table.rows)
    return Table((table.columns[0], *(table.columns[i] for i in columns)), rows)


def _print_part(part: Table, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Rendered
    from rich.text import Text

    rendered = Rendered(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    rendered.add_column(Text(part.columns[0]), overflow="fold", width=_name_width(part) - 2)
    for i, column in enumerate(part.columns[1:], start=1):
        rendered.add_column(Text(column), justify="right", width=_width(part, i) - 2)
    for row in part.rows:
        rendered.add_row(*map(Text, row))
    console.print(rendered)
