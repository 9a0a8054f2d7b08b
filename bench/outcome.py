"""What a cell has measured so far, and what of it stands in a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench import record
from bench.costs import Cost, Parameters, PeakMemory
from bench.metrics import accuracy_matrix, compute_all
from bench.probes.sizes import Size
from bench.probes.training import Phases
from methods.errors import UsageError


@dataclass(frozen=True)
class Spent:
    """What one experience took, and how large it left the method; see `bench.costs.Cost`."""

    train_seconds: float
    phases: Phases
    energy: float | None
    eval_seconds: float | None
    trainable: int
    stored: Size
    deployed: Size
    flops: int


@dataclass
class Outcome:
    """What a cell has measured so far; an experience adds one entry to each list.

    `meanings` are the sentences on the names in `diagnostics`; `memory` is the peak of all trainings.
    `started` is when the first experience began; `resumed` has the number of experiences that were over
    whenever the cell was taken up again.
    """

    started: str
    counts: list[int] = field(default_factory=list)
    correct: list[list[int | None]] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    diagnostics: list[Mapping[str, Any]] = field(default_factory=list)
    meanings: Mapping[str, str] = field(default_factory=dict)
    memory: PeakMemory | None = None
    plain_flops: int | None = None
    resumed: list[int] = field(default_factory=list)


_ADAPTER = TypeAdapter(Outcome)


def as_notes(outcome: Outcome) -> Any:
    """The outcome as JSON can hold it; every number comes back as it was."""
    return json.loads(json.dumps(_ADAPTER.dump_python(outcome)))


def from_notes(notes: Any) -> Outcome:
    """What `as_notes` was given."""
    return _ADAPTER.validate_python(notes)


def higher(a: PeakMemory | None, b: PeakMemory | None) -> PeakMemory | None:
    """The one of two peaks of training that is higher."""
    peaks = [memory for memory in (a, b) if memory is not None and memory.training is not None]
    return max(peaks, key=lambda memory: memory.training.peak if memory.training else 0, default=None)


def results_of(outcome: Outcome) -> dict[str, Any]:
    """What the record of a finished cell holds, and no other.

    Raises:
        UsageError: if what the method tells of itself cannot be recorded.
    """
    return {
        "correct": outcome.correct,
        "counts": outcome.counts,
        "accuracy_matrix": accuracy_matrix(outcome.correct, outcome.counts),
        "metrics": compute_all(outcome.correct, outcome.counts),
        "diagnostics": _diagnostics(outcome),
        "cost": _cost(outcome),
    }


def _diagnostics(outcome: Outcome) -> dict[str, record.Diagnostic] | None:
    """Each name's entries in a row, null where an experience lacks it; None if there is nothing to say."""
    names = sorted({name for entry in outcome.diagnostics for name in entry})
    return {name: _diagnostic(name, outcome) for name in names} or None


def _diagnostic(name: str, outcome: Outcome) -> record.Diagnostic:
    if name not in outcome.meanings:
        raise UsageError(
            f"diagnostics() of the method returns '{name}', which its `describes` does not explain; "
            "add a sentence on it there"
        )
    try:
        values = [entry.get(name) for entry in outcome.diagnostics]
        return record.Diagnostic(meaning=outcome.meanings[name], values=values)
    except ValidationError as error:
        raise UsageError(
            f"diagnostics() of the method returns '{name}' in a form that cannot be recorded "
            f"({record.complaint(error)}); return a finite number, a list with one for each block, a table "
            "with a line for each experience tested, or None"
        ) from None


def _cost(outcome: Outcome) -> Cost:
    spent = outcome.spent
    energy = [one.energy for one in spent]
    return Cost(
        train_seconds=[one.train_seconds for one in spent],
        prepare_seconds=[one.phases.prepare for one in spent],
        consolidate_seconds=[one.phases.consolidate for one in spent],
        train_images=[one.phases.images for one in spent],
        eval_seconds=[one.eval_seconds for one in spent],
        energy_joules=None if None in energy else energy,
        peak_memory=outcome.memory,
        flops=[one.flops for one in spent],
        plain_flops=outcome.plain_flops,
        parameters=Parameters(
            trainable=[one.trainable for one in spent],
            stored=[one.stored.elements for one in spent],
            deployed=[one.deployed.elements for one in spent],
            stored_bytes=[one.stored.bytes for one in spent],
            deployed_bytes=[one.deployed.bytes for one in spent],
        ),
    )
