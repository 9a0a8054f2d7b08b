"""Marked places in Markdown that a program fills.

`<!-- table: NAME -->`, lines, `<!-- end -->` marks a table; `<!-- value: NAME -->text<!-- end -->` marks a
number inside a sentence. The markers are invisible where the page is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from methods.errors import UsageError, unknown

#: Kind of marker -> name -> text.
Contents = Mapping[str, Mapping[str, str]]

KINDS = ("table", "value")
END = "<!-- end -->"

_PLACE = re.compile(rf"<!-- (?P<kind>{'|'.join(KINDS)}): (?P<name>[\w-]+) -->(?P<text>.*?){END}", re.DOTALL)
_START = re.compile(rf"<!-- (?:{'|'.join(KINDS)}):")


def fill(page: str, contents: Contents) -> str:
    """The page with the contents in its marked places; everything else is unchanged.

    Raises:
        UsageError: if a marker has no end, or names no content.

    >>> fill("n is <!-- value: n --><!-- end -->.", {"table": {}, "value": {"n": "3"}})
    'n is <!-- value: n -->3<!-- end -->.'
    """
    if any(_START.search(place["text"]) for place in _PLACE.finditer(page)) or _unclosed(page):
        raise UsageError(f"a marker has no end; write '{END}' after it")
    return _PLACE.sub(_filling(contents), page)


def names(page: str) -> list[tuple[str, str]]:
    """(kind, name) of each marked place."""
    return [(place["kind"], place["name"]) for place in _PLACE.finditer(page)]


def _unclosed(page: str) -> bool:
    return len(_START.findall(page)) != len(_PLACE.findall(page))


def _filling(contents: Contents) -> Callable[[re.Match[str]], str]:
    def filled(place: re.Match[str]) -> str:
        kind, name = place["kind"], place["name"]
        if name not in contents[kind]:
            raise unknown(kind, name, contents[kind])
        text = contents[kind][name]
        inner = f"\n{text}\n" if kind == "table" else text
        return f"<!-- {kind}: {name} -->{inner}{END}"

    return filled
