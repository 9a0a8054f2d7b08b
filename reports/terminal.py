"""The report's headline tables on a terminal: the same tables, another renderer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.record import Record
from reports import tables
from reports.groups import Group, group
from reports.text import clean

if TYPE_CHECKING:
    from rich.console import Console


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
    from rich.table import Table
    from rich.text import Text

    rendered, content = Table(title=Text(clean(g.title))), tables.headline(g)
    for i, column in enumerate(content.columns):
        rendered.add_column(Text(column), justify="right" if i else "left", overflow="fold")
    for row in content.rows:
        rendered.add_row(*(Text(clean(cell)) for cell in row))
    console.print(rendered)
    for warning in tables.warnings(g):
        console.print(Text(f"warning: {clean(warning)}", style="yellow"))
    for sentence in tables.unfinished(g):
        console.print(Text(f"not finished: {clean(sentence)}", style="red"))
    for note in tables.notes(g):
        console.print(Text(clean(note), style="dim"))
