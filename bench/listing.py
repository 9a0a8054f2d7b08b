"""The registered methods and benchmarks, and whether their data are on this machine. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.benchmarks import BENCHMARKS
from bench.benchmarks.base import data_roots
from methods.registry import METHODS, Entry


@dataclass(frozen=True)
class ListEntry:
    """A method or a benchmark; `data` says where the data of a benchmark are, or how to get them."""

    kind: str
    name: str
    summary: str
    data: str | None = None


def listing() -> list[ListEntry]:
    """All methods, then all benchmarks."""
    roots = data_roots(None)
    methods = [ListEntry("method", e.name, e.summary) for e in METHODS.values()]
    return methods + [ListEntry("benchmark", e.name, e.summary, _data(e, roots)) for e in BENCHMARKS.values()]


def _data(entry: Entry, roots: Sequence[Path]) -> str:
    cls = entry.load()
    path = cls(cls.Options()).locate(roots)
    return str(path) if path else str(cls.absent)


def as_json(components: Sequence[ListEntry]) -> str:
    """The list in JSON, for programs."""
    return json.dumps([asdict(item) for item in components], indent=2)


def as_text(components: Sequence[ListEntry]) -> str:
    """The list in lines, for people."""
    width = max(len(item.name) for item in components)
    lines = []
    for kind in ("method", "benchmark"):
        lines += [f"{kind}s"]
        lines += [_line(item, width) for item in components if item.kind == kind]
    return "\n".join(lines)


def _line(item: ListEntry, width: int) -> str:
    data = f"\n  {'':{width}}  data: {item.data}" if item.data else ""
    return f"  {item.name:{width}}  {item.summary}{data}"
