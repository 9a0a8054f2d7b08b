"""The methods' diagnostics, over the seeds of a row. No diagnostic is known by name here."""

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
    """Whether all entries of a diagnostic are tables, in all cells of the group."""
    series = [(record.diagnostics or {}).get(name) for record in group.records]
    values = [value for one in series if one for value in one.values if value is not None]
    return bool(values) and all(map(is_table, values))


def title(name: str) -> str:
    """The name of a diagnostic as it is shown."""
    return name.replace("_", " ")


def meanings(group: Group) -> list[tuple[str, str]]:
    """(title, meaning) of each diagnostic; where it has several meanings, the title names the methods."""
    users: dict[tuple[str, str], dict[str, None]] = {}
    for row in group.rows:
        keys = {(n, d.meaning) for record in row.done for n, d in (record.diagnostics or {}).items()}
        for key in keys:
            variants_of = row.method.partition(":")[0]
            users.setdefault(key, {})[variants_of] = None
    several = {name for name in names(group) if sum(name == other for other, _ in users) > 1}
    return [
        (f"{title(name)} ({', '.join(users[name, meaning])})" if name in several else title(name), meaning)
        for name, meaning in sorted(users)
    ]


def means(row: Row, name: str) -> list[DiagnosticValue]:
    """An entry per task: the mean over the row's finished cells, block by block where entries are lists.

    An entry is None where a cell has none, and where it is a table. Empty if a cell lacks the diagnostic.

    Raises:
        UsageError: if the cells have entries of different kinds, or lists of different lengths.
    """
    cells = [(record.diagnostics or {}).get(name) for record in row.done]
    series = [cell.values for cell in cells if cell is not None]
    if not series or len(series) < len(cells):
        return []
    if len({kind(value) for values in series for value in values if value is not None}) > 1:
        raise UsageError(
            f"the cells of {row.method} on {row.records[0].benchmark} have '{name}' in different forms "
            "(numbers, lists of different lengths, tables); run them again with one version: --rerun all"
        )
    return [_mean(values) for values in zip(*series, strict=True)]


def _mean(values: Sequence[DiagnosticValue]) -> DiagnosticValue:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        return fmean(numbers)
    lists = [value for value in values if is_list(value)]
    return [fmean(block) for block in zip(*lists, strict=True)] if len(lists) == len(values) else None


def last_table(row: Row, name: str) -> tuple[int, list[list[float]]] | None:
    """The last table of the row's first finished cell, with its seed; None if it has none.

    It is not averaged over seeds, because prompt 3 of one seed is unrelated to prompt 3 of another: a mean
    would hide that only a few prompts of a pool are used.
    """
    for record in row.done[:1]:
        diagnostic = (record.diagnostics or {}).get(name)
        tables = [value for value in diagnostic.values if is_table(value)] if diagnostic else []
        if tables:
            return record.seed, tables[-1]
    return None
