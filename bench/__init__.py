"""What is run and how it is measured. Knows no method by name.

From Python, `bench.load("results")` gives the records of a folder as a pandas frame; see `bench.frame.load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.frame import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is used, because pandas takes a second to import."""
    if name == "load":
        from bench.frame import load

        return load
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
