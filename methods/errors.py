"""The one exception whose message is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A request that cannot be met. The message says what was received, what is legal, what to do."""


class MissingError(UsageError):
    """Data or weights that are not on this machine. The message says where they were looked for."""


def unknown(kind: str, got: str, legal: Iterable[str]) -> UsageError:
    """The error for a name that is not registered, with the nearest legal one.

    >>> str(unknown("method", "l2b", ["l2p", "ncm"]))
    "unknown method 'l2b'; did you mean 'l2p'? Legal: l2p, ncm"
    """
    names = sorted(legal)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return UsageError(f"unknown {kind} '{got}'{hint} Legal: {', '.join(names) or 'none'}")
