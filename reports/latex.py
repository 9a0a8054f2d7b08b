"""Tables as LaTeX, for papers; they need the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reports.tables import Table
from reports.text import DASH, EN_DASH, clean

#: Characters that TeX interprets, that its old fonts lack, or that it takes for an option after a row's end.
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
    r"""Foreign text for a line of LaTeX, shown literally.

    Letters outside ASCII are kept: whether they can be set depends on the fonts of the document.

    >>> print(escape("a_b {50 %} -0.5 --seed"))
    a\_b \{50 \%\} $-$0.5 -{}-seed
    """
    return _ACTIVE.sub(_replacement, clean(text))


def _replacement(match: re.Match[str]) -> str:
    """A hyphen before a number is a minus sign; several hyphens in a row must not become a dash."""
    sign = match[0]
    if sign.startswith("-"):
        return "$-$" if sign == "-" else "{}".join(sign)
    return _SIGNS[sign]


def table(content: Table, caption: str, label: str) -> str:
    """A floating table, with names aligned to the left and numbers to the right.

    Args:
        caption: plain text.
        label: letters, digits, dashes and colons.
    """
    titles = [escape(column) for column in content.columns]
    rows = [[_cell(content, i, j) for j in range(len(row))] for i, row in enumerate(content.rows)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{'l' * content.heads}{'r' * (len(titles) - content.heads)}}}",
        r"\toprule",
        _line(titles),
        r"\midrule",
        *map(_line, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(["% needs \\usepackage{booktabs}", *lines, ""])


def _cell(content: Table, row: int, column: int) -> str:
    text = escape(content.rows[row][column])
    return rf"\textbf{{{text}}}" if (row, column) in content.bold else text


def _line(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"
