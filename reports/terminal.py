"""The report's headline tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.record import Record
from reports import summary, tables
from reports.groups import Group, group
from reports.tables import Table
from reports.text import clean
from reports.warnings import unfinished, warnings

if TYPE_CHECKING:
    from rich.console import Console

#: Longer names are wrapped.
NAME_WIDTH = 30


def print_table(records: Sequence[Record], console: Console | None = None) -> None:
    """Print each group: its best method, its headline table, its warnings and notes.

    Raises:
        UsageError: if two records are of the same cell.
    """
    from rich.console import Console

    target = console or Console()
    if not records:
        target.print("no records to show")
    for g in group(records):
        _print_group(g, target)


def _print_group(g: Group, console: Console) -> None:
    from rich.text import Text

    console.print(Text(clean(g.title), style="bold"))
    console.print(Text(clean(summary.answer(g))))
    for part in _parts(_cleaned(tables.headline(g)), console.width):
        _print_part(part, console)
    for warning in warnings(g):
        console.print(Text(f"warning: {clean(warning)}", style="yellow"))
    for sentence in unfinished(g):
        console.print(Text(f"not finished: {clean(sentence)}", style="red"))
    for note in tables.notes(g):
        console.print(Text(clean(note), style="dim"))
    console.print()


def _cleaned(table: Table) -> Table:
    return replace(table, rows=tuple(tuple(map(clean, row)) for row in table.rows))


def _parts(table: Table, width: int) -> Iterator[Table]:
    """The table cut into parts that fit the terminal, each with the names, so that no number is wrapped."""
    heads = range(table.heads)
    room = width - 1 - sum(_width(table, i) for i in heads)
    part: list[int] = []
    for i in range(table.heads, len(table.columns)):
        if part and sum(_width(table, j) for j in (*part, i)) > room:
            yield _with_columns(table, [*heads, *part])
            part = []
        part.append(i)
    yield _with_columns(table, [*heads, *part])


def _width(table: Table, column: int) -> int:
    """The characters a column needs if its title wraps between words and its cells do not wrap at all.

    Only names longer than `NAME_WIDTH` are wrapped.
    """
    words = table.columns[column].split()
    needed = 2 + max(len(text) for text in (*words, *(row[column] for row in table.rows)))
    return min(needed, NAME_WIDTH) if column < table.heads else needed


def _with_columns(table: Table, columns: Sequence[int]) -> Table:
    rows = tuple(tuple(row[j] for j in columns) for row in table.rows)
    bold = frozenset((i, columns.index(j)) for i, j in table.bold if j in columns)
    return Table(tuple(table.columns[j] for j in columns), rows, bold, table.heads)


def _print_part(part: Table, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Rendered
    from rich.text import Text

    rendered = Rendered(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for i, column in enumerate(part.columns):
        if i < part.heads:
            rendered.add_column(Text(column), overflow="fold", width=_width(part, i) - 2)
        else:
            rendered.add_column(Text(column), justify="right", width=_width(part, i) - 2)
    for i, row in enumerate(part.rows):
        rendered.add_row(*(Text(cell, style=_style(part, i, j)) for j, cell in enumerate(row)))
    console.print(rendered)


def _style(part: Table, row: int, column: int) -> str:
    return "bold" if (row, column) in part.bold else ""
