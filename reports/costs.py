"""What the methods of a group cost, as tables of plain text: latency, memory, training, sizes.

How each quantity is measured is in `bench.costs`. Columns in which nothing was measured are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

from bench.costs import Cost, Latency, TimingConditions, percentiles
from bench.record import Record
from reports.groups import Group, Row
from reports.stats import estimate
from reports.tables import MEMORY, Column, Table, batch_sizes, latencies, measured, peak, show, shown, table
from reports.text import DASH, counted, number

#: Which end of the stream a size is of.
End = Literal["first", "last"]
ENDS: tuple[End, End] = ("first", "last")
POSITION = {"first": 0, "last": -1}

KIB, MIB = 2**10, 2**20

LATENCY_NOTE = (
    "From normalised images to logits. Milliseconds and n are of the samples of all seeds together. A "
    "ratio is that of the two medians within a round, in which the plain timm ViT was timed, too; ± is "
    "the half-width of its 95 % t-interval over seeds."
)
SESSIONS_NOTE = (
    "The rows were timed in different sessions: the absolute times are of different sessions, and only "
    "the ratios compare."
)
MEMORY_NOTE = (
    "Above the baseline: the highest point of a phase less the baseline, which is what was in use before "
    "the model was built. Each phase ran in a process of its own."
)
TRAINING_NOTE = (
    "Seconds are those of the clock: whatever else the machine was doing is in them. Preparation is the "
    "part before the first epoch, consolidation the part after the last. Images/s is the images of all "
    "training steps over all of the seconds."
)
SIZES_NOTE = (
    "Stored is what the method keeps beside the backbone, deployed all that a prediction needs. "
    "Operations are those of the prediction of one image."
)


@dataclass(frozen=True)
class Part:
    """A table with its title and how to read it."""

    title: str
    table: Table
    notes: tuple[str, ...]


def parts(group: Group) -> list[Part]:
    """What was measured of the group's costs; empty if nothing was."""
    found = (
        _part("Latency of inference", latency(group), (LATENCY_NOTE, *timed_under(group))),
        _part("Memory", memory(group), (MEMORY_NOTE,)),
        _part("Training", training(group), (TRAINING_NOTE,)),
        _part("Sizes", sizes(group), (SIZES_NOTE,)),
    )
    return [part for part in found if part is not None]


def _part(title: str, found: Table | None, notes: tuple[str, ...]) -> Part | None:
    return None if found is None else Part(title, found, notes)


def _measured_table(group: Group, columns: Iterable[Column]) -> Table | None:
    found = measured(group, columns)
    return table(group, found) if found else None


# ---- latency -----------------------------------------------------------------------------------


def latency(group: Group) -> Table | None:
    """A line for each method, batch size and number of tasks learnt."""
    columns = (
        "method",
        "batch",
        "tasks learnt",
        "median (ms)",
        "p95 (ms)",
        "p99 (ms)",
        "n",
        "ratio to the plain ViT ↓",
        "plain ViT, median (ms)",
        "merged",
        "warm-up settled",
    )
    rows = tuple(
        _latency_row(row, batch, learnt)
        for batch in batch_sizes(group.done)
        for row in group.rows
        for learnt in sorted({at.experiences for at in _at(row, batch)})
    )
    return Table(columns, rows) if rows else None


def _at(row: Row, batch: int) -> list[Latency]:
    return [at for record in row.done for at in latencies(record) if at.batch == batch]


def _latency_row(row: Row, batch: int, learnt: int) -> tuple[str, ...]:
    """The samples of all seeds together: their percentiles are not means of percentiles."""
    found = [at for at in _at(row, batch) if at.experiences == learnt]
    samples = [seconds for at in found for seconds in at.model.samples]
    cuts = percentiles(samples)
    plain = percentiles([seconds for at in found for seconds in at.plain.samples])
    return (
        row.method,
        str(batch),
        str(learnt),
        *(number(1000 * cuts[p - 1], 2) for p in (50, 95, 99)),
        number(len(samples), 0),
        show(estimate(at.ratio for at in found), 2),
        number(1000 * plain[49], 2),
        _whether(c.merged for c in _conditions(row)),
        _whether(at.stable for at in found),
    )


def _whether(flags: Iterable[bool]) -> str:
    found = set(flags)
    return "in part" if len(found) > 1 else "yes" if found == {True} else "no"


def _conditions(row: Row) -> list[TimingConditions]:
    return [record.cost.conditions for record in row.done if record.cost and record.cost.conditions]


def timed_under(group: Group) -> list[str]:
    """What the latencies were measured under, in sentences; empty if none was measured."""
    places = _distinct(conditions(record) for record in group.done)
    if not places:
        return []
    ways = _distinct(procedure(record) for record in group.done)
    beside = _distinct(", ".join(sorted(c.beside)) for row in group.rows for c in _conditions(row))
    return [
        f"Timed on {'; '.join(places)}; {'; '.join(ways)}. In the same rounds: {'; '.join(beside)}.",
        *([SESSIONS_NOTE] if len(_sessions(group)) > 1 else []),
    ]


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return sorted({text for text in texts if text is not None})


def conditions(record: Record) -> str | None:
    """The device and the setting of a cell's latencies; None if it has none."""
    found = _cost(record).conditions
    if found is None:
        return None
    threads = counted(found.threads, "thread")
    return f"{found.device}, {found.precision}, {threads}, images of {found.image_size} pixels"


def procedure(record: Record) -> str | None:
    """How often a cell's models were timed; None if they were not."""
    ways = sorted({(at.batch, at.rounds, at.model.n // at.rounds) for at in latencies(record)})
    return ", ".join(f"batch {b} in {r} rounds of {n} calls" for b, r, n in ways) or None


def _sessions(group: Group) -> set[frozenset[tuple[str, str]]]:
    """The sessions of each row that was timed; one entry where all rows were timed in the same."""
    found = {
        frozenset((", ".join(sorted(c.beside)), c.started) for c in _conditions(row)) for row in group.rows
    }
    return {sessions for sessions in found if sessions}


# ---- memory, training, sizes -------------------------------------------------------------------


def memory(group: Group) -> Table | None:
    """Of training and inference, each kind of memory in columns of its own."""
    columns = [
        Column(title, _mean(value, 0))
        for kind, name in MEMORY.items()
        for phase in ("training", "inference")
        for title, value in _memory_values(kind, name, phase)
    ]
    found = measured(group, columns)
    batch = measured(group, [Column("batch of inference", _inference_batch)]) if found else []
    return table(group, [*found, *batch]) if found else None


def _memory_values(
    kind: str, name: str, phase: str
) -> Iterator[tuple[str, Callable[[Record], float | None]]]:
    def above(record: Record) -> float | None:
        found = peak(record, kind, phase)
        return found.above / MIB if found else None

    def baseline(record: Record) -> float | None:
        found = peak(record, kind, phase)
        return found.baseline / MIB if found else None

    def reserved(record: Record) -> float | None:
        found = peak(record, kind, phase)
        return found.reserved / MIB if found and found.reserved is not None else None

    yield f"{phase}, above the baseline ({name}, MiB)", above
    yield f"{phase}, baseline ({name}, MiB)", baseline
    yield f"{phase}, highest reserved by CUDA's allocator (MiB)", reserved


def _inference_batch(row: Row) -> str:
    memories = [record.cost.peak_memory for record in row.done if record.cost]
    batches = {m.inference_batch for m in memories if m and m.inference_batch is not None}
    return " or ".join(map(str, sorted(batches))) or DASH


def training(group: Group) -> Table | None:
    """Seconds, images a second and energy, over all experiences of a stream."""
    columns = (
        Column("whole stream (s)", _mean(lambda record: total(record, "train_seconds"), 1)),
        Column("per task (s)", _mean(_per_task("train_seconds"), 2)),
        Column("of it preparation (s)", _mean(_per_task("prepare_seconds"), 2)),
        Column("of it consolidation (s)", _mean(_per_task("consolidate_seconds"), 2)),
        Column("images/s", _mean(_images_per_second, 1)),
        Column("energy of the whole GPU per task (J)", _mean(_per_task("energy_joules"), 0)),
        Column("evaluation after the last task (s)", _mean(_last_evaluation, 2)),
    )
    return _measured_table(group, columns)


def _mean(value: Callable[[Record], float | None], digits: int) -> Callable[[Row], str]:
    return lambda row: shown(row, value, digits)


def _cost(record: Record) -> Cost:
    return record.cost or Cost()


def total(record: Record, name: str) -> float | None:
    """A field of `bench.costs.ExperienceCost`, summed over the experiences; None if an entry is missing."""
    values: Sequence[float | None] = _cost(record).by_experience(name) or [None]
    known = [value for value in values if value is not None]
    return fsum(known) if len(known) == len(values) else None


def _per_task(name: str) -> Callable[[Record], float | None]:
    def per_task(record: Record) -> float | None:
        whole = total(record, name)
        return None if whole is None else whole / record.tasks

    return per_task


def _images_per_second(record: Record) -> float | None:
    images, seconds = total(record, "train_images"), total(record, "train_seconds")
    return images / seconds if images and seconds else None


def _last_evaluation(record: Record) -> float | None:
    seconds: list[float | None] = _cost(record).by_experience("eval_seconds") or [None]
    return seconds[-1]


def sizes(group: Group) -> Table | None:
    """Operations and sizes, after the first and after the last task."""
    columns = [
        *(Column(f"GFLOPs per image, {end} task", _mean(_gflops(end), 2)) for end in ENDS),
        Column("as multiple of the plain ViT, last task", _mean(_flops_ratio, 3)),
        *(Column(f"trainable (elements), {end} task", _mean(_size("trainable", 1, end), 0)) for end in ENDS),
        *(Column(f"stored (KiB), {end} task", _mean(_size("stored_bytes", KIB, end), 1)) for end in ENDS),
        *(Column(f"deployed (MiB), {end} task", _mean(_size("deployed_bytes", MIB, end), 1)) for end in ENDS),
    ]
    return _measured_table(group, columns)


def _size(field: str, scale: float, end: End) -> Callable[[Record], float | None]:
    def size(record: Record) -> float | None:
        values = _cost(record).by_experience(field)
        value: float | None = values[POSITION[end]] if values else None
        return None if value is None else value / scale

    return size


def _gflops(end: End) -> Callable[[Record], float | None]:
    return _size("flops", 1e9, end)


def _flops_ratio(record: Record) -> float | None:
    flops, plain = _size("flops", 1, "last")(record), _cost(record).plain_flops
    return flops / plain if flops is not None and plain else None
