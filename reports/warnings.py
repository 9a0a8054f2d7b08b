"""Warnings that qualify a group's results, and its unfinished cells: sentences of plain text."""

from __future__ import annotations

from collections.abc import Callable

from bench.record import Record
from reports.groups import CONTAMINATED, Group, is_paper, order_of
from reports.tables import DAGGER
from reports.text import counted
from reports.values import cost_of, latencies

#: With fewer rounds of timing, one disturbed round changes the median.
ENOUGH_ROUNDS = 3


def warnings(group: Group) -> list[str]:
    """Warnings that qualify the group's results."""
    return [
        *_subset(group),
        *_recorded(group),
        *_equality(group),
        *_unmeasured(group),
        *_timing(group),
        *_code(group),
    ]


def unfinished(group: Group) -> list[str]:
    """A sentence per cell without results."""
    return [
        f"{row.method}, seed {record.seed}: {record.status}. {record.reason}"
        for row in group.rows
        for record in row.unfinished
    ]


# ---- what was run ------------------------------------------------------------------------------


def _subset(group: Group) -> list[str]:
    sentences = []
    scale, eval_on = group.facts.get("scale"), group.facts.get("eval on")
    if scale not in (None, "full"):
        sentences.append(f"Scale {scale}: a subset, not comparable with published numbers.")
    if eval_on not in (None, "test"):
        sentences.append(
            f"Evaluated on {eval_on} (held-out training images), not on the test images: for choosing "
            "settings, not comparable with published numbers."
        )
    return sentences


def _recorded(group: Group) -> list[str]:
    """The warnings in the manifests, each with the methods it concerns."""
    texts = sorted({text for record in group.records for text in record.manifest.warnings})
    return [f"{_mark(text)}{text} ({_methods(group, _carries(text))})" for text in texts]


def _mark(text: str) -> str:
    return f"{DAGGER} " if text.startswith(CONTAMINATED) else ""


def _carries(text: str) -> Callable[[Record], bool]:
    return lambda record: text in record.manifest.warnings


def _methods(group: Group, concerned: Callable[[Record], bool]) -> str:
    """The methods with a cell that is concerned, or "all cells"."""
    methods = [row.method for row in group.rows if any(map(concerned, row.records))]
    return "all cells" if all(map(concerned, group.records)) else ", ".join(methods)


# ---- equal conditions --------------------------------------------------------------------------


def _equality(group: Group) -> list[str]:
    sentences = []
    if any(map(is_paper, group.records)):
        sentences.append(
            "Each method was run with its paper's recipe: the rows were not obtained under equal conditions."
        )
    if len({frozenset(record.seed for record in row.done) for row in group.rows if row.done}) > 1:
        sentences.append(
            "Not all methods have results for the same seeds; their means are over different runs."
        )
    orders = {(record.seed, order_of(record)) for record in group.done}
    if len(orders) > len({seed for seed, _ in orders}):
        what = "domains" if group.scenario == "domain-incremental" else "classes"
        sentences.append(f"With the same seed, not all methods learnt the {what} in the same order.")
    manifests = [record.manifest for record in group.done]
    machines = sorted({f"{m.device}, {counted(m.threads, 'thread')}" for m in manifests})
    if len(machines) > 1:
        sentences.append(
            f"Times are not comparable, because the cells ran on different machines: {'; '.join(machines)}."
        )
    return sentences + _parallel(group) + _resumed(group)


def _parallel(group: Group) -> list[str]:
    ways = {(record.manifest.executor, record.manifest.workers) for record in group.done}
    if all(workers == 1 for _, workers in ways):
        return []
    phrases = [
        f"{executor}, {'as many as fit' if workers is None else workers} at a time"
        for executor, workers in sorted(ways, key=str)
    ]
    return [f"Several cells ran at the same time, which makes training slower: {'; '.join(phrases)}."]


def _resumed(group: Group) -> list[str]:
    cells = [
        f"{row.method}, seed {record.seed}, after task {' and '.join(map(str, record.manifest.resumed))}"
        for row in group.rows
        for record in row.done
        if record.manifest.resumed
    ]
    if not cells:
        return []
    return [
        "These cells were interrupted and resumed, so their training time and training memory come from "
        f"several processes; on a CPU, everything else is as in an uninterrupted run: {'; '.join(cells)}."
    ]


# ---- faults of probes --------------------------------------------------------------------------


def _unmeasured(group: Group) -> list[str]:
    """What could not be measured, each with its reason and the methods it concerns."""
    faults = sorted({fault for record in group.done for fault in cost_of(record).unmeasured.items()})
    return [
        f"Not measured: {quantity} ({_methods(group, _has_fault(quantity, reason))}), because of {reason}"
        for quantity, reason in faults
    ]


def _has_fault(quantity: str, reason: str) -> Callable[[Record], bool]:
    return lambda record: cost_of(record).unmeasured.get(quantity) == reason


# ---- timing ------------------------------------------------------------------------------------


def _timing(group: Group) -> list[str]:
    return [
        *_not_timed(group),
        *_timed_differently(group),
        *_too_few_rounds(group),
        *_unsettled(group),
    ]


def _not_timed(group: Group) -> list[str]:
    methods = [row.method for row in group.rows if any(map(_awaits_timing, row.done))]
    if not methods:
        return []
    return [
        f"Inference was not timed: {', '.join(methods)}. If the command that ran these cells was stopped "
        "before it ended, the same command does the timing."
    ]


def _awaits_timing(record: Record) -> bool:
    """Operations are counted with the training; inference is timed after the training of the whole grid."""
    cost = cost_of(record)
    return bool(cost.by_experience("flops")) and not cost.latency


def _timed_differently(group: Group) -> list[str]:
    conditions = [record.cost.conditions for record in group.done if record.cost and record.cost.conditions]
    devices = sorted({f"{c.device}, {counted(c.threads, 'thread')}, {c.precision}" for c in conditions})
    if len(devices) < 2:
        return []
    return [f"Latencies were measured under different conditions: {'; '.join(devices)}."]


def _too_few_rounds(group: Group) -> list[str]:
    rounds = min((at.rounds for record in group.done for at in latencies(record)), default=ENOUGH_ROUNDS)
    if rounds >= ENOUGH_ROUNDS:
        return []
    return [f"Latencies of {counted(rounds, 'round')} show that timing works, not how long inference takes."]


def _unsettled(group: Group) -> list[str]:
    latencies_of_rows = [
        f"{row.method}, seed {record.seed}, batch {at.batch} after task {at.experiences}"
        for row in group.rows
        for record in row.done
        for at in latencies(record)
        if not at.stable
    ]
    if not latencies_of_rows:
        return []
    return [f"Times had not settled by the end of the warm-up: {'; '.join(latencies_of_rows)}."]


# ---- code --------------------------------------------------------------------------------------


def _code(group: Group) -> list[str]:
    sentences = []
    if any(record.manifest.dirty for record in group.records):
        methods = _methods(group, lambda record: bool(record.manifest.dirty))
        sentences.append(
            f"The code had uncommitted changes ({methods}): the commit alone does not identify what was run."
        )
    if len({record.manifest.commit for record in group.done}) > 1:
        sentences.append("The cells were run with different commits of the code.")
    return sentences
