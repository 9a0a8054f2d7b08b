"""What is printed where the encoding of the output lacks a sign, such as a pipe in ASCII."""

from __future__ import annotations

import codecs
import io
import unicodedata
from typing import TextIO

#: What a sign becomes that the encoding lacks; a letter loses its accents, any other is a question mark.
SPELLED = {
    "±": "+/-",
    "·": "-",
    "…": "...",
    "—": "-",
    "\N{EN DASH}": "-",
    "†": "*",
    "Δ": "delta",
    "Σ": "sum",
    "\N{MULTIPLICATION SIGN}": "x",
    "→": "->",
    "↑": "^",
    "↓": "v",
    "≈": "~",
    "≤": "<=",
    "≥": ">=",
}

SPELL_OUT = "spell-out"


def spell_out(error: UnicodeError) -> tuple[str, int]:
    r"""An error handler of `codecs`: what is written in place of signs that cannot be encoded.

    >>> "95 ± 1 \u2602".encode("ascii", SPELL_OUT)
    b'95 +/- 1 ?'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(map(_spelled, signs)), error.end


def _spelled(sign: str) -> str:
    """A letter without its accents, or what `SPELLED` says."""
    letter = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return SPELLED.get(sign) or letter or "?"


codecs.register_error(SPELL_OUT, spell_out)


def print_any_sign(*streams: TextIO) -> None:
    """Make the streams print every text; those that have another way of doing so keep it.

    "strict" raises an error for a sign that the encoding lacks, and "surrogateescape", the default of a POSIX
    locale, does so for all but the bytes of a file name.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=SPELL_OUT)
