"""The measurements of a cell so far, and the part of them that goes into the record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.costs import Cost, ExperienceCost, PeakMemory
from bench.probes.guard import measured
from bench.record import Diagnostic
from methods.errors import UsageError, describe_validation


@dataclass
class Measurements:
    """The measurements of a cell so far; each task adds one entry to each list.

    Attributes:
        started: when the first task began.
        counts, correct: see `bench.metrics`.
        costs: see `bench.costs`.
        diagnostics: the values of the method's diagnostics by name.
        diagnostic_help: what these names mean.
        memory: the peak of all trainings.
        resumed: for each time the cell was resumed, the number of tasks already learnt.
        zero_loss: the tasks, from 1, in which the loss was exactly zero at every step.
        unmeasured: what could not be measured or recorded: by quantity, the error.
    """

    started: str
    counts: list[int] = field(default_factory=list)
    correct: list[list[int | None]] = field(default_factory=list)
    costs: list[ExperienceCost] = field(default_factory=list)
    diagnostics: list[Mapping[str, Any]] = field(default_factory=list)
    diagnostic_help: Mapping[str, str] = field(default_factory=dict)
    memory: PeakMemory | None = None
    feature_images: int | None = None
    feature_seconds: float | None = None
    plain_flops: int | None = None
    resumed: list[int] = field(default_factory=list)
    zero_loss: list[int] = field(default_factory=list)
    unmeasured: dict[str, str] = field(default_factory=dict)

    @property
    def experiences(self) -> int:
        """Number of experiences that were learnt."""
        return len(self.costs)


_ADAPTER = TypeAdapter(Measurements)


def as_notes(measurements: Measurements) -> Any:
    """The measurements as values that JSON can hold; `from_notes` restores every number exactly."""
    return json.loads(json.dumps(_ADAPTER.dump_python(measurements)))


def from_notes(notes: Any) -> Measurements:
    """The measurements that `as_notes` was called with."""
    return _ADAPTER.validate_python(notes)


def higher(a: PeakMemory | None, b: PeakMemory | None) -> PeakMemory | None:
    """The higher of two training peaks; None if there is none."""
    peaks = [memory for memory in (a, b) if memory is not None and memory.training is not None]
    return max(peaks, key=lambda memory: memory.training.peak if memory.training else 0, default=None)


def results_of(measurements: Measurements) -> dict[str, Any]:
    """The fields of a record that only a finished cell has, by name."""
    unmeasured = dict(measurements.unmeasured)
    return {
        "correct": measurements.correct,
        "counts": measurements.counts,
        "diagnostics": _diagnostics(measurements, unmeasured),
        "cost": Cost(
            experiences=measurements.costs,
            feature_images=measurements.feature_images,
            feature_seconds=measurements.feature_seconds,
            plain_flops=measurements.plain_flops,
            peak_memory=measurements.memory,
            unmeasured=unmeasured,
        ),
    }


def checked_diagnostics(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a method's diagnostics, if a checkpoint can hold them.

    Raises:
        TypeError: if it cannot, as with tensors.
    """
    json.dumps(dict(values))
    return values


def _diagnostics(measurements: Measurements, unmeasured: dict[str, str]) -> dict[str, Diagnostic] | None:
    """For each name one value per task, null where a task has none; None without any name.

    One that cannot be recorded is left out, with the reason in `unmeasured`: it costs no result.
    """
    names = sorted({name for values in measurements.diagnostics for name in values})
    made = {
        name: measured(f"diagnostic {name}", partial(_diagnostic, name, measurements), unmeasured)
        for name in names
    }
    return {name: diagnostic for name, diagnostic in made.items() if diagnostic is not None} or None


def _diagnostic(name: str, measurements: Measurements) -> Diagnostic:
    """The entries of a diagnostic.

    Raises:
        UsageError: if they cannot be recorded.
    """
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
