"""The exceptions whose messages users read, and how messages quote what was received."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

COMPLAINTS = 3  # problems in one message
LONGEST = 200  # characters of a quoted value


class UsageError(ValueError):
    """A request that cannot be met. The message says what was received, what is legal, what to do."""


class MissingError(UsageError):
    """Data or weights that are not on this machine. The message says where they were looked for."""


def one_line(text: str) -> str:
    """The text on one line, cut after `LONGEST` characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def quote(value: object) -> str:
    """A received value, as messages show it."""
    try:
        return one_line(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists without end
        return f"a value of type {type(value).__name__} that is too large to be shown"


def plain_name(name: object) -> str:
    """A received name, as messages show it: on one line, without quotes."""
    return one_line(name) if isinstance(name, str) else quote(name)


def abbreviate(names: Sequence[str], limit: int = 5) -> str:
    """The first `limit` names, for an error message, and the number of the others."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def unknown(kind: str, got: object, legal: Iterable[str]) -> UsageError:
    """The error for a name that is not registered, with the nearest legal one.

    >>> str(unknown("method", "l2b", ["l2p", "ncm"]))
    "unknown method 'l2b'; did you mean 'l2p'? Legal: l2p, ncm"
    """
    names = sorted(map(plain_name, legal))
    near = difflib.get_close_matches(plain_name(got), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return UsageError(f"unknown {kind} '{plain_name(got)}'{hint} Legal: {', '.join(names) or 'none'}")


def describe_validation(
    error: ValidationError, owner: str = "", meanings: Mapping[str, str | None] | None = None
) -> str:
    """What pydantic found wrong, the first few problems: "owner.field (meaning): problem, got value".

    Args:
        owner: put before each field, with a dot.
        meanings: of the fields, by name; none where there is nothing to add.
    """
    problems = error.errors(include_url=False)[:COMPLAINTS]
    return "; ".join(_describe(problem, owner, meanings or {}) for problem in problems)


def _describe(problem: Any, owner: str, meanings: Mapping[str, str | None]) -> str:
    field = one_line(".".join(map(str, problem["loc"])))
    message = one_line(str(problem["msg"]).removeprefix("Value error, "))
    if not field:
        return message
    meaning = meanings.get(str(problem["loc"][0]))
    about = f" ({meaning})" if meaning else ""
    where = f"{owner}.{field}" if owner else field
    return f"{where}{about}: {message[0].lower()}{message[1:]}, got {quote(problem['input'])}"
