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
    """A method or a benchmark.

    Attributes:
        data: where the data of a benchmark are, or how to get them.
        scenarios: those that a benchmark offers; the first is the one without `--scenario`.
    """

    kind: str
    name: str
    summary: str
    data: str | None = None
    scenarios: tuple[str, ...] | None = None


def listing() -> list[ListEntry]:
    """All methods, then all benchmarks."""
    roots = data_roots(None)
    methods = [ListEntry("method", e.name, e.summary) for e in METHODS.values()]
    return methods + [_benchmark(entry, roots) for entry in BENCHMARKS.values()]


def _benchmark(entry: Entry, roots: Sequence[Path]) -> ListEntry:
    cls = entry.load()
    path = cls(cls.Options()).locate(roots)
    data = str(path) if path else str(cls.absent)
    return ListEntry("benchmark", entry.name, entry.summary, data, cls.scenarios)


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
    first, *others = item.scenarios or ("",)
    scenarios = ", ".join([f"{first} (default)", *others]) if others else first
    facts = {"data": item.data, "scenarios": scenarios}
    below = [f"\n  {'':{width}}  {name}: {fact}" for name, fact in facts.items() if fact]
    return f"  {item.name:{width}}  {item.summary}{''.join(below)}"
