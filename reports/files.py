"""The report's numbers as files: each table as CSV and LaTeX, and the raw numbers of every cell.

Names that come from outside are guarded against spreadsheets; see `reports.text.spreadsheet`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.costs import Peak
from bench.metrics import METRICS
from bench.record import Record
from reports import costs, latex, published, tables
from reports.groups import Group, Row
from reports.tables import Table
from reports.text import slug, spreadsheet

TABLES_FOLDER = "tables"
CELLS_NAME = "cells.csv"

#: Sizes in `bench.costs.ExperienceCost` that a cell is told with, and the names of their columns.
SIZES = {
    "trainable": "parameters_trainable_elements",
    "stored": "parameters_stored_elements",
    "deployed": "parameters_deployed_elements",
    "stored_bytes": "stored_bytes",
    "deployed_bytes": "deployed_bytes",
}


@dataclass(frozen=True)
class Sheet:
    """A table of the report, with what a file of its own needs: a name for it, and a caption."""

    name: str
    caption: str
    table: Table


def sheets(group: Group) -> list[Sheet]:
    """The tables that the report shows of a group."""
    reference, pairs = tables.paired(group) or ("", None)
    found = published.compare(group, published.load())
    published_table = found.table if found else None
    named = [
        ("headline", f"Results on {group.title}", tables.headline(group)),
        ("paired", f"Differences from {reference} on {group.title}, paired by seed", pairs),
        ("other-metrics", f"Other metrics on {group.title}", tables.other_metrics(group)),
        *((slug(p.title), f"{p.title} on {group.title}", p.table) for p in costs.parts(group)),
        ("published", f"Published numbers and ours on {group.title}", published_table),
        ("diagnostics", f"Diagnostics on {group.title}", tables.told(group)),
    ]
    return [Sheet(name, caption, table) for name, caption, table in named if table is not None]


def write_tables(groups: Sequence[Group], out: Path) -> list[Path]:
    """Write `out`/tables/<stem of the group>-<name>.csv and .tex, two files for each table.

    Raises:
        OSError: if they cannot be written.
    """
    folder = out / TABLES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return [path for g in groups for sheet in sheets(g) for path in _written(g.stem, sheet, folder)]


def _written(stem: str, sheet: Sheet, folder: Path) -> Iterator[Path]:
    name = f"{stem}-{sheet.name}"
    noted = any("±" in cell for row in sheet.table.rows for cell in row)
    caption = f"{sheet.caption}. {tables.INTERVAL_NOTE}" if noted else f"{sheet.caption}."
    texts = {"csv": as_csv(sheet.table), "tex": latex.table(sheet.table, caption, f"tab:{name}")}
    for kind, text in texts.items():
        path = folder / f"{name}.{kind}"
        path.write_text(text, encoding="utf-8", newline="\n")
        yield path


def as_csv(table: Table) -> str:
    """The table as it is shown, without what stands out."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([spreadsheet(cell) for cell in row] for row in (table.columns, *table.rows))
    return file.getvalue()


# ---- cells -------------------------------------------------------------------------------------


def write_cells(groups: Sequence[Group], out: Path) -> Path:
    """Write `out`/cells.csv: a line per cell, numbers in full precision, empty where nothing was measured.

    Raises:
        OSError: if it cannot be written.
    """
    import pandas as pd

    batches = tables.batch_sizes(record for g in groups for record in g.records)
    lines = [_cell(g, row, record, batches) for g in groups for row in g.rows for record in row.records]
    path = out / CELLS_NAME
    # As objects: whole numbers stay whole in a column that has empty places.
    pd.DataFrame(lines, dtype=object).to_csv(path, index=False, encoding="utf-8", lineterminator="\n")
    return path


def _cell(g: Group, row: Row, record: Record, batches: Sequence[int]) -> dict[str, Any]:
    found = {"table": g.stem, "method": row.method, "benchmark": record.benchmark, "seed": record.seed}
    found |= {"status": record.status, "reason": record.reason}
    found |= {f"{metric.name}_fraction": (record.metrics or {}).get(metric.name) for metric in METRICS}
    found |= _times(record, batches) | _memory(record) | _sizes(record) | _conditions(record)
    return {name: spreadsheet(value) if isinstance(value, str) else value for name, value in found.items()}


def _times(record: Record, batches: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"train_total_seconds": costs.total(record, "train_seconds")}
    for batch in batches:
        at, name = tables.last_latency(record, batch), f"latency_batch_{batch}"
        found[f"{name}_median_seconds"] = at.model.median if at else None
        found[f"{name}_plain_vit_median_seconds"] = at.plain.median if at else None
        found[f"{name}_ratio_to_plain_vit"] = at.ratio if at else None
    return found


def _memory(record: Record) -> dict[str, Any]:
    memory = record.cost.peak_memory if record.cost else None
    found: dict[str, Any] = {"peak_memory_kind": memory.kind if memory else None}
    for phase in ("training", "inference"):
        peak: Peak | None = getattr(memory, phase, None)
        found[f"peak_memory_{phase}_bytes"] = peak.peak if peak else None
        found[f"peak_memory_{phase}_baseline_bytes"] = peak.baseline if peak else None
    return found


def _sizes(record: Record) -> dict[str, Any]:
    """After the last experience."""
    return {
        "prediction_flops_per_image": _last(tables.sizes(record, "flops")),
        "plain_vit_flops_per_image": record.cost.plain_flops if record.cost else None,
        **{name: _last(tables.sizes(record, kind)) for kind, name in SIZES.items()},
    }


def _last(values: Sequence[int]) -> int | None:
    return values[-1] if values else None


def _conditions(record: Record) -> dict[str, Any]:
    manifest, protocol = record.manifest, record.config.get("protocol")
    return {
        "backbone": manifest.backbone,
        "protocol": protocol.get("name") if isinstance(protocol, dict) else protocol,
        "scale": record.config.get("scale"),
        "image_size_pixels": protocol.get("image_size") if isinstance(protocol, dict) else None,
        "precision": manifest.precision,
        "device": manifest.device,
        "commit": manifest.commit,
        "uncommitted_changes": manifest.dirty,
    }
