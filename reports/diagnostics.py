"""What methods tell of themselves, over the seeds of a row. No diagnostic is known by name here."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bench.record import DiagnosticValue, is_list, is_table, kind
from methods.errors import UsageError
from reports.groups import Group, Row


def names(group: Group) -> list[str]:
    """The diagnostics that any cell of the group has."""
    return sorted({name for record in group.records for name in record.diagnostics or {}})


def only_tables(group: Group, name: str) -> bool:
    """Whether all that the group's cells tell under this name are tables."""
    told = [(record.diagnostics or {}).get(name) for record in group.records]
    values = [value for found in told if found for value in found.values if value is not None]
    return bool(values) and all(map(is_table, values))


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
    """An entry per experience: the mean over the row's finished cells.

    Block by block where it is a list, cell by cell where it is a table. None where a cell has none; empty
    where a cell lacks the diagnostic altogether.

    Raises:
        UsageError: if the cells have entries of different kinds, lists of different lengths, or tables of
            different shapes after the same experience.
    """
    cells = [(record.diagnostics or {}).get(name) for record in row.done]
    series = [cell.values for cell in cells if cell is not None]
    if not series or len(series) < len(cells):
        return []
    if not _alike(series):
        raise UsageError(
            f"the cells of {row.method} on {row.records[0].benchmark} have '{name}' in different forms, "
            "numbers, lists or tables of different sizes; run them again by one version: --rerun all"
        )
    return [_mean(values) for values in zip(*series, strict=True)]


def _alike(series: Sequence[Sequence[DiagnosticValue]]) -> bool:
    """Whether all entries of all cells are of one kind, and tables after an experience of one shape."""
    kinds = {kind(value) for values in series for value in values if value is not None}
    tables = ([value for value in values if is_table(value)] for values in zip(*series, strict=True))
    return len(kinds) <= 1 and all(len({(len(t), len(t[0])) for t in found}) <= 1 for found in tables)


def _mean(values: Sequence[DiagnosticValue]) -> DiagnosticValue:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        return fmean(numbers)
    lists = [value for value in values if is_list(value)]
    if len(lists) == len(values):
        return _mean_list(lists)
    tables = [value for value in values if is_table(value)]
    return [_mean_list(lines) for lines in zip(*tables, strict=True)] if len(tables) == len(values) else None


def _mean_list(lists: Sequence[list[float]]) -> list[float]:
    return [fmean(numbers) for numbers in zip(*lists, strict=True)]
