"""What a cell has measured so far, and the part of it that goes into the record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.costs import Cost, ExperienceCost, PeakMemory
from bench.record import Diagnostic
from methods.errors import UsageError, describe_validation


@dataclass
class Measurements:
    """What a cell has measured so far; an experience adds one entry to each list.

    Attributes:
        started: when the first experience began.
        counts, correct: see `bench.metrics`.
        diagnostics: the values of the method's diagnostics by name.
        diagnostic_help: what these names mean.
        memory: the peak of all trainings.
        resumed: for each time the cell was resumed, the number of experiences already learnt.
    """

    started: str
    counts: list[int] = field(default_factory=list)
    correct: list[list[int | None]] = field(default_factory=list)
    costs: list[ExperienceCost] = field(default_factory=list)
    diagnostics: list[Mapping[str, Any]] = field(default_factory=list)
    diagnostic_help: Mapping[str, str] = field(default_factory=dict)
    memory: PeakMemory | None = None
    plain_flops: int | None = None
    resumed: list[int] = field(default_factory=list)

    @property
    def experiences(self) -> int:
        """How many experiences were learnt."""
        return len(self.costs)


_ADAPTER = TypeAdapter(Measurements)


def as_notes(measurements: Measurements) -> Any:
    """The measurements as JSON can hold them; `from_notes` restores every number exactly."""
    return json.loads(json.dumps(_ADAPTER.dump_python(measurements)))


def from_notes(notes: Any) -> Measurements:
    """What `as_notes` was given."""
    return _ADAPTER.validate_python(notes)


def higher(a: PeakMemory | None, b: PeakMemory | None) -> PeakMemory | None:
    """The higher of two peaks of training."""
    peaks = [memory for memory in (a, b) if memory is not None and memory.training is not None]
    return max(peaks, key=lambda memory: memory.training.peak if memory.training else 0, default=None)


def results_of(measurements: Measurements) -> dict[str, Any]:
    """The parts of a record that only a finished cell has.

    Raises:
        UsageError: if the method's diagnostics cannot be recorded.
    """
    return {
        "correct": measurements.correct,
        "counts": measurements.counts,
        "diagnostics": _diagnostics(measurements),
        "cost": Cost(
            experiences=measurements.costs,
            plain_flops=measurements.plain_flops,
            peak_memory=measurements.memory,
        ),
    }


def _diagnostics(measurements: Measurements) -> dict[str, Diagnostic] | None:
    """Each name with one value per experience, null where an experience has none; None without any name."""
    names = sorted({name for values in measurements.diagnostics for name in values})
    return {name: _diagnostic(name, measurements) for name in names} or None


def _diagnostic(name: str, measurements: Measurements) -> Diagnostic:
    if name not in measurements.diagnostic_help:
        raise UsageError(
            f"diagnostics() of the method returns '{name}', which its `diagnostic_help` does not explain; "
            "add a sentence on it there"
        )
    try:
        values = [by_name.get(name) for by_name in measurements.diagnostics]
        return Diagnostic(meaning=measurements.diagnostic_help[name], values=values)
    except ValidationError as error:
        raise UsageError(
            f"diagnostics() of the method returns '{name}' in a form that cannot be recorded "
            f"({describe_validation(error)}); return a finite number, a list with one number per block, a "
            "table with one line per experience tested, or None"
        ) from None
