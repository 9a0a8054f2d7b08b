"""Imports point one way: entry -> grid -> cell -> parts -> base, and `methods` below them all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: From the lowest layer to the highest; a module belongs to the first whose prefix it has.
LAYERS = {
    "methods": ("methods",),
    "base": (
        "bench.model",
        "bench.metrics",
        "bench.costs",
        "bench.predictions",
        "bench.upgrade",
        "bench.storage",
        "bench.spec",
        "bench.record",
        "bench.frame",
        "bench.output",
        "bench.options",
        "bench.cores",
        "bench.textfile",
    ),
    "parts": ("bench.benchmarks", "bench.probes"),
    "cell": ("bench.cell",),
    "grid": ("bench.grid",),
    "reports": ("reports",),
    "entry": ("bench",),
}
ORDER = list(LAYERS)
#: What may be imported from below that is not of every layer below.
REPORTS_MAY_READ = {
    "bench.benchmarks.splits.class_order",  # a pure function
    "bench.record",
    "bench.metrics",
    "bench.costs",
    "bench.model",
    "bench.frame",
    "methods.errors",
}


def modules() -> list[Path]:
    return sorted(path for room in ("bench", "methods", "reports") for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> str:
    return next(
        layer
        for layer, prefixes in LAYERS.items()
        if any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)
    )


def imports(path: Path) -> Iterator[str]:
    """The modules of this project that a file imports, also within functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.partition(".")[0] in ("bench", "methods", "reports"))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_import_runs_upwards(path: Path) -> None:
    own = layer_of(name_of(path))
    upwards = [name for name in imports(path) if ORDER.index(layer_of(name)) > ORDER.index(own)]
    assert upwards == []


@pytest.mark.parametrize("path", sorted((ROOT / "reports").rglob("*.py")), ids=name_of)
def test_reports_read_records_and_nothing_heavier(path: Path) -> None:
    foreign = {name for name in imports(path) if not name.startswith("reports")}
    allowed = {
        name for name in foreign for may in REPORTS_MAY_READ if name == may or name.startswith(may + ".")
    }
    assert foreign - allowed == set()
