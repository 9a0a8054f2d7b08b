"""The report's numbers as files: each table as CSV and LaTeX, and the raw numbers of every cell.

Text is escaped so that a spreadsheet does not run it as a formula; see `reports.text.spreadsheet`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reports import costs, latex, published, tables
from reports.groups import Group
from reports.tables import Table
from reports.text import slug, spreadsheet


@dataclass(frozen=True)
class Sheet:
    """A table of the report, with the name of its files and its caption."""

    name: str
    caption: str
    table: Table


def sheets(group: Group) -> list[Sheet]:
    """The tables that the report shows of a group."""
    reference, pairs = tables.paired(group) or ("", None)
    comparison = published.compare(group, published.load())
    published_table = comparison.table if comparison else None
    named = [
        ("headline", f"Results on {group.title}", tables.headline(group)),
        ("paired", f"Differences from {reference} on {group.title}, paired by seed", pairs),
        ("other-metrics", f"Other metrics on {group.title}", tables.other_metrics(group)),
        ("by-domain", f"Results by domain on {group.title}", tables.by_domain(group)),
        *((slug(p.title), f"{p.title} on {group.title}", p.table) for p in costs.parts(group)),
        ("published", f"Published numbers and ours on {group.title}", published_table),
        ("diagnostics", f"Diagnostics on {group.title}", tables.diagnostics_table(group)),
    ]
    return [Sheet(name, caption, table) for name, caption, table in named if table is not None]


def render_tables(groups: Sequence[Group]) -> dict[str, bytes]:
    """Each table as <stem of the group>-<name>.csv and .tex, by the name of the file."""
    return {
        name: text.encode() for g in groups for sheet in sheets(g) for name, text in _texts(g.stem, sheet)
    }


def _texts(stem: str, sheet: Sheet) -> Iterator[tuple[str, str]]:
    name = f"{stem}-{sheet.name}"
    has_intervals = any("±" in cell for row in sheet.table.rows for cell in row)
    caption = f"{sheet.caption}. {tables.INTERVAL_NOTE}" if has_intervals else f"{sheet.caption}."
    yield f"{name}.csv", as_csv(sheet.table)
    yield f"{name}.tex", latex.table(sheet.table, caption, f"tab:{name}")


def as_csv(table: Table) -> str:
    """The text of the table, without its emphasis."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([spreadsheet(cell) for cell in row] for row in (table.columns, *table.rows))
    return file.getvalue()


# ---- cells -------------------------------------------------------------------------------------


def render_cells(groups: Sequence[Group]) -> bytes:
    """cells.csv: a row per cell, numbers in full precision, empty where nothing was measured.

    The columns are those of `bench.load(what="cells")`, with the table of the report in place of the folder.
    """
    from bench.frame import cells_frame

    rows = [(g.stem, row.method, record) for g in groups for row in g.rows for record in row.records]
    frame = cells_frame([record for *_, record in rows])
    frame["method"] = [method for _, method, _ in rows]
    frame.insert(0, "table", [stem for stem, *_ in rows])
    guarded = frame.map(_guarded).rename(columns=spreadsheet)
    text: str = guarded.to_csv(index=False, lineterminator="\n")
    return text.encode()


def _guarded(value: Any) -> Any:
    return spreadsheet(value) if isinstance(value, str) else value
