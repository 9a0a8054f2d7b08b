"""A table as LaTeX, for papers; it needs the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reports.tables import Table
from reports.text import DASH, EN_DASH, clean

#: What TeX acts on, what its old fonts lack, and what it would take for an option after the end of a row.
_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "{''}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "·": r"$\cdot$",
    "Δ": r"$\Delta$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "†": r"\dag{}",
    "\N{MINUS SIGN}": "$-$",
    EN_DASH: "--",
    DASH: "---",
    "…": r"\ldots{}",
}

_MINUS = rf"(?<![^\s({EN_DASH}])-(?=\d)"
_ACTIVE = re.compile(f"{_MINUS}|--+|[{re.escape(''.join(_SIGNS))}]")


def escape(text: str) -> str:
    r"""Foreign text for a line of LaTeX, shown as it is and acted on in no way.

    Letters outside ASCII are left alone: whether they can be set depends on the fonts of the document.

    >>> print(escape("a_b {50 %} -0.5 --seed"))
    a\_b \{50 \%\} $-$0.5 -{}-seed
    """
    return _ACTIVE.sub(_replaced, clean(text))


def _replaced(found: re.Match[str]) -> str:
    """A hyphen before a number is its sign, hyphens in a row are no dash."""
    sign = found[0]
    if sign.startswith("-"):
        return "$-$" if sign == "-" else "{}".join(sign)
    return _SIGNS[sign]


def table(found: Table, caption: str, label: str) -> str:
    """A floating table, names to the left and numbers to the right.

    Args:
        caption: plain text.
        label: letters, digits, dashes and colons.
    """
    heads = [escape(column) for column in found.columns]
    rows = [[_cell(found, i, j) for j in range(len(row))] for i, row in enumerate(found.rows)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{'l' * found.heads}{'r' * (len(heads) - found.heads)}}}",
        r"\toprule",
        _line(heads),
        r"\midrule",
        *map(_line, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(["% needs \\usepackage{booktabs}", *lines, ""])


def _cell(found: Table, row: int, column: int) -> str:
    shown = escape(found.rows[row][column])
    return rf"\textbf{{{shown}}}" if (row, column) in found.bold else shown


def _line(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"
