"""Markdown tables for docs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], heads: int = 1) -> str:
    """A Markdown table; the first `heads` columns are aligned to the left, the others to the right.

    >>> print(table(("method", "n"), [("ncm", "3")]))
    | method | n |
    |:---|---:|
    | ncm | 3 |
    """
    rule = f"|{':---|' * heads}{'---:|' * (len(header) - heads)}"
    return "\n".join([_line(header), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
