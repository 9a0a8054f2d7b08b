"""The one exception whose message is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 200  # characters of what was received that a sentence repeats


class UsageError(ValueError):
    """A request that cannot be met. The message says what was received, what is legal, what to do."""


class MissingError(UsageError):
    """Data or weights that are not on this machine. The message says where they were looked for."""


def one_line(text: str) -> str:
    """The text on one line, and not longer than can be read."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def shown(value: object) -> str:
    """What was received, for a sentence."""
    try:
        return one_line(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists without end
        return f"a value of type {type(value).__name__} that is too large to be shown"


def named(name: object) -> str:
    """A name that was received, for a sentence that puts it in quotes."""
    return one_line(name) if isinstance(name, str) else shown(name)


def unknown(kind: str, got: object, legal: Iterable[str]) -> UsageError:
    """The error for a name that is not registered, with the nearest legal one.

    >>> str(unknown("method", "l2b", ["l2p", "ncm"]))
    "unknown method 'l2b'; did you mean 'l2p'? Legal: l2p, ncm"
    """
    names = sorted(map(named, legal))
    near = difflib.get_close_matches(named(got), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return UsageError(f"unknown {kind} '{named(got)}'{hint} Legal: {', '.join(names) or 'none'}")
