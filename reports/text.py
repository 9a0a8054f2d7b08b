"""Formatting of numbers, and escaping of text that comes from outside."""

from __future__ import annotations

import re

DASH = "—"
EN_DASH = "\N{EN DASH}"

_ENTITIES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}

#: Characters that Markdown interprets inside a line; an underscore within a word is not one of them.
_ACTIVE = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")

#: Positions where a backslash keeps text from becoming a heading, a list or a rule, or ending a heading.
_BLOCK = re.compile(r"(^[0-9]{1,9}(?=[.)](?:\s|$))|^(?=#{1,6}(?:\s|$)|[-+](?:\s|$)|-[- ]*$)|(?<=\s)(?=#+$))")

#: Text that a spreadsheet takes for a formula, also with full-width signs; a number may have a sign.
_FORMULA = re.compile(r"[=@\uff1d\uff0b\uff0d\uff20]|[+-](?![\d.,e±()/%\s\u2013-]*$)")


def clean(text: str) -> str:
    """One line of printable characters: line breaks, tabs and control characters become spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escape(text: str) -> str:
    r"""Foreign text for a line of Markdown, shown literally.

    >>> print(escape("a|b <b> *c* image_size"))
    a\|b &lt;b&gt; \*c\* image_size
    """
    return _BLOCK.sub(r"\1\\", _ACTIVE.sub(r"\\\g<0>", clean(text).translate(_ENTITIES)))


def spreadsheet(text: str) -> str:
    """Foreign text for a cell of a CSV file, quoted if a spreadsheet would run it as a formula.

    Quotation marks of the CSV syntax do not help: the program removes them before it interprets the text.

    >>> spreadsheet("=HYPERLINK(1)"), spreadsheet("-0.5 ± 0.1")
    ("'=HYPERLINK(1)", '-0.5 ± 0.1')
    """
    shown = clean(text)
    return f"'{shown}" if _FORMULA.match(shown) else shown


def code(text: str) -> str:
    """Foreign text as a code span, in a fence longer than any run of backticks in the text."""
    inner = clean(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", inner)), default=0))
    return f"{fence} {inner} {fence}" if "`" in inner or not inner else f"{fence}{inner}{fence}"


def in_table(markdown: str) -> str:
    r"""Markdown for a cell of a table, where a pipe must be escaped even in a code span."""
    return re.sub(r"(?<!\\)\|", r"\\|", markdown)


def number(value: float, digits: int) -> str:
    """A fixed number of digits after the point, commas between thousands, and no negative zero.

    >>> number(-0.001, 2), number(12345.678, 1)
    ('0.00', '12,345.7')
    """
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def counted(n: int, what: str) -> str:
    """A count with its noun, in the plural where needed.

    >>> counted(1, "thread"), counted(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def significant(value: float, digits: int = 3) -> str:
    """A number rounded to its leading digits; as a power of ten where it is very small.

    >>> significant(12.0), significant(0.98765), significant(12345), significant(0.0000123)
    ('12.0', '0.988', '12,300', '1.23e-05')
    """
    rounded = f"{value:.{digits - 1}e}"
    decimals = digits - 1 - int(rounded.partition("e")[2])
    return number(round(value, decimals), max(decimals, 0)) if decimals < digits + 4 else rounded


def slug(text: str) -> str:
    """A short file name of lower-case letters, digits and dashes; not necessarily unique."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "unnamed"
