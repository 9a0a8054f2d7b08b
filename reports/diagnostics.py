"""What methods tell of themselves, over the seeds of a row. No diagnostic is known by name here."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bench.record import DiagnosticValue
from methods.errors import UsageError
from reports.groups import Group, Row


def names(group: Group) -> list[str]:
    """The diagnostics that any cell of the group has."""
    return sorted({name for record in group.records for name in record.diagnostics or {}})


def title(name: str) -> str:
    """A name as a reader sees it."""
    return name.replace("_", " ")


def meanings(group: Group) -> list[tuple[str, str]]:
    """(title, meaning) of each diagnostic; where methods mean different things, the title says who."""
    users: dict[tuple[str, str], dict[str, None]] = {}
    for row in group.rows:
        found = {(n, d.meaning) for record in row.done for n, d in (record.diagnostics or {}).items()}
        for key in found:
            variants_of = row.method.partition(":")[0]
            users.setdefault(key, {})[variants_of] = None
    several = {name for name in names(group) if sum(name == other for other, _ in users) > 1}
    return [
        (f"{title(name)} ({', '.join(users[name, meaning])})" if name in several else title(name), meaning)
        for name, meaning in sorted(users)
    ]


def means(row: Row, name: str) -> list[DiagnosticValue]:
    """An entry per experience: the mean over the row's finished cells, block by block where it is a list.

    None where a cell has none; empty where a cell lacks the diagnostic altogether.

    Raises:
        UsageError: if one cell has numbers and another lists, or lists of different lengths.
    """
    cells = [(record.diagnostics or {}).get(name) for record in row.done]
    series = [cell.values for cell in cells if cell is not None]
    if not series or len(series) < len(cells):
        return []
    shapes = {len(v) if isinstance(v, list) else 0 for values in series for v in values if v is not None}
    if len(shapes) > 1:
        raise UsageError(
            f"the cells of {row.method} on {row.records[0].benchmark} have '{name}' in different forms, "
            "numbers or lists of different lengths; run them again by one version: --rerun all"
        )
    return [_mean(values) for values in zip(*series, strict=True)]


def _mean(values: Sequence[DiagnosticValue]) -> DiagnosticValue:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        return fmean(numbers)
    lists = [value for value in values if isinstance(value, list)]
    return [fmean(block) for block in zip(*lists, strict=True)] if len(lists) == len(values) else None
