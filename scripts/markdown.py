"""Tables that can be pasted into docs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right.

    >>> print(table(("method", "n"), [("ncm", "3")]))
    | method | n |
    |:---|---:|
    | ncm | 3 |
    """
    rule = ":---" + "|---:" * (len(header) - 1)
    return "\n".join([_line(header), f"|{rule}|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
