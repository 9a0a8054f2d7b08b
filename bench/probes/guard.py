"""A probe's fault never costs a result: what cannot be measured is null, and the reason is kept."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TypeVar

T = TypeVar("T")


def measured(quantity: str, probe: Callable[[], T], faults: MutableMapping[str, str]) -> T | None:
    """What a probe measures; None if it fails, and the reason is then added to `faults` by the quantity."""
    try:
        return probe()
    except Exception as error:  # of any type: the model is trained, and nothing else depends on the probe
        faults[quantity] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None
