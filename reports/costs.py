"""The tables of a group's costs as plain text: latency, memory, training, sizes.

How each quantity is measured is in docs/measurements.md. Columns in which nothing was measured are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.costs import FEW_ROUNDS, NARROW, Latency, Peak, TimingConditions, percentiles
from bench.record import Record
from reports.groups import Group, Row
from reports.stats import estimate
from reports.tables import Column, Table, mean_column, mean_with_interval, measured, table
from reports.text import DASH, counted, number
from reports.values import (
    ENDS,
    KIB,
    MEMORY,
    MIB,
    Value,
    at_task,
    batch_sizes,
    cost_of,
    flops_ratio,
    images_per_second,
    latencies,
    passes_made,
    passes_without_cache,
    peak,
    per_task,
    total,
)

LATENCY_NOTE = (
    "From normalised images to logits. Milliseconds and n are of the samples of all seeds together. The "
    "ratio is the median over rounds of median(model) / median(plain timm ViT), timed in the same round; "
    "its ± is the half-width of the 95 % t-interval over seeds. Known to: the half-width of the 95 % "
    "interval of that median over rounds, the widest of the seeds; rounds were added until it was "
    f"{100 * NARROW:g} % for every model, or the time for timing had been used up (wide)."
)
SESSIONS_NOTE = "The rows were timed in different sessions: compare their ratios, not their absolute times."
MEMORY_NOTE = (
    "Baseline: memory in use before the model was built. Above the baseline: the peak of a phase minus its "
    "baseline. Each phase ran in a separate process. Training that reads kept features makes no pass for "
    "them, and needs less."
)
TRAINING_NOTE = (
    "Seconds are wall-clock time and include whatever else the machine was doing. Preparation is the part "
    "before the first epoch, consolidation the part after the last. Images/s is the number of images in all "
    "training steps, divided by the time of the whole stream. Passes: forward passes through the backbone, "
    "those for statistics included, for each image in a training step. Where features of the frozen backbone "
    "were kept, fewer passes were made than the method needs by itself: its price is the column without "
    "them, and its seconds are those with them. The time to compute features that are kept is in no row."
)
SIZES_NOTE = (
    "Stored is what the method keeps in addition to the backbone; deployed is everything that a prediction "
    "needs. FLOPs are those of the prediction of one image."
)


@dataclass(frozen=True)
class Part:
    """A table with its title and the notes on how to read it."""

    title: str
    table: Table
    notes: tuple[str, ...]


def parts(group: Group) -> list[Part]:
    """The tables of the costs that were measured; empty if none was."""
    tables = (
        ("Latency of inference", latency(group), (LATENCY_NOTE, *timed_under(group))),
        ("Memory", memory(group), (MEMORY_NOTE,)),
        ("Training", training(group), (TRAINING_NOTE,)),
        ("Sizes", sizes(group), (SIZES_NOTE,)),
    )
    return [Part(title, content, notes) for title, content, notes in tables if content is not None]


def _measured_table(group: Group, columns: Iterable[Column]) -> Table | None:
    with_values = measured(group, columns)
    return table(group, with_values) if with_values else None


# ---- latency -----------------------------------------------------------------------------------


def latency(group: Group) -> Table | None:
    """A row per batch size, method and number of tasks learnt; None if nothing was timed."""
    columns = (
        "method",
        "batch",
        "tasks learnt",
        "median (ms)",
        "p95 (ms)",
        "p99 (ms)",
        "n",
        "ratio to the plain ViT ↓",
        "known to (± %)",
        "plain ViT, median (ms)",
        "merged",
        "warm-up settled",
    )
    rows = tuple(
        _latency_row(row, batch, learnt)
        for batch in batch_sizes(group.done)
        for row in group.rows
        for learnt in sorted({timed.experiences for timed in _timed(row, batch)})
    )
    return Table(columns, rows) if rows else None


def _timed(row: Row, batch: int) -> list[Latency]:
    return [timed for record in row.done for timed in latencies(record) if timed.batch == batch]


def _latency_row(row: Row, batch: int, learnt: int) -> tuple[str, ...]:
    """Percentiles are of the samples of all seeds together; a mean of percentiles is not a percentile."""
    of_seeds = [timed for timed in _timed(row, batch) if timed.experiences == learnt]
    samples = [seconds for timed in of_seeds for seconds in timed.model.samples]
    model = percentiles(samples)
    plain = percentiles([seconds for timed in of_seeds for seconds in timed.plain.samples])
    return (
        row.method,
        str(batch),
        str(learnt),
        *(number(1000 * model[percent - 1], 2) for percent in (50, 95, 99)),
        number(len(samples), 0),
        mean_with_interval(estimate(timed.ratio for timed in of_seeds), 2),
        known_to([timed.width for timed in of_seeds]),
        number(1000 * plain[49], 2),
        _yes_or_no(conditions.merged for conditions in _conditions(row)),
        _yes_or_no(timed.stable for timed in of_seeds),
    )


def known_to(widths: Sequence[float | None]) -> str:
    """The widest interval over rounds, in percent, and whether timing ended before it was narrow."""
    if None in widths:
        return f"under {FEW_ROUNDS} rounds"
    widest = max(width for width in widths if width is not None)
    return number(100 * widest, 1) + (" (wide)" if widest > NARROW else "")


def _yes_or_no(flags: Iterable[bool]) -> str:
    distinct = set(flags)
    return "in part" if len(distinct) > 1 else "yes" if distinct == {True} else "no"


def _conditions(row: Row) -> list[TimingConditions]:
    return [record.cost.conditions for record in row.done if record.cost and record.cost.conditions]


def timed_under(group: Group) -> list[str]:
    """Sentences on the conditions under which latency was measured; empty if it was not."""
    devices = _distinct(map(conditions, group.done))
    if not devices:
        return []
    procedures = _distinct(map(procedure, group.done))
    sessions = _distinct(", ".join(sorted(c.beside)) for row in group.rows for c in _conditions(row))
    return [
        f"Timed on {'; '.join(devices)}; {'; '.join(procedures)}. "
        f"Timed in the same rounds: {'; '.join(sessions)}.",
        *([SESSIONS_NOTE] if len(_sessions(group)) > 1 else []),
    ]


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return sorted({text for text in texts if text is not None})


def conditions(record: Record) -> str | None:
    """The device and the settings of a cell's latencies; None if it has none."""
    timing = cost_of(record).conditions
    if timing is None:
        return None
    threads = counted(timing.threads, "thread")
    return f"{timing.device}, {timing.precision}, {threads}, images of {timing.image_size} pixels"


def procedure(record: Record) -> str | None:
    """How often a cell's models were timed; None if they were not."""
    ways = sorted({(at.batch, at.rounds, at.model.n // at.rounds) for at in latencies(record)})
    return ", ".join(f"batch {b} in {r} rounds of {n} calls" for b, r, n in ways) or None


def _sessions(group: Group) -> set[frozenset[tuple[str, str]]]:
    """The sessions of each row that was timed; a single entry if all rows were timed in the same ones."""
    of_rows = {
        frozenset((", ".join(sorted(c.beside)), c.started) for c in _conditions(row)) for row in group.rows
    }
    return {sessions for sessions in of_rows if sessions}


# ---- memory, training, sizes -------------------------------------------------------------------


def memory(group: Group) -> Table | None:
    """Memory of training and inference; each kind of memory has separate columns."""
    columns = [
        mean_column(title, value, 0)
        for kind, name in MEMORY.items()
        for phase in ("training", "inference")
        for title, value in _memory_values(kind, name, phase)
    ]
    with_values = measured(group, columns)
    batch = measured(group, [Column("inference batch", _inference_batch)]) if with_values else []
    return table(group, [*with_values, *batch]) if with_values else None


def _memory_values(kind: str, name: str, phase: str) -> Iterator[tuple[str, Value]]:
    def mebibytes(part: Callable[[Peak], int | None]) -> Value:
        def value(record: Record) -> float | None:
            phase_peak = peak(record, kind, phase)
            in_bytes = part(phase_peak) if phase_peak else None
            return None if in_bytes is None else in_bytes / MIB

        return value

    yield f"{phase}, above the baseline ({name}, MiB)", mebibytes(lambda peak: peak.above)
    yield f"{phase}, baseline ({name}, MiB)", mebibytes(lambda peak: peak.baseline)
    yield f"{phase}, peak reserved by CUDA's allocator (MiB)", mebibytes(lambda peak: peak.reserved)


def _inference_batch(row: Row) -> str:
    memories = [record.cost.peak_memory for record in row.done if record.cost]
    batches = {m.inference_batch for m in memories if m and m.inference_batch is not None}
    return " or ".join(map(str, sorted(batches))) or DASH


def training(group: Group) -> Table | None:
    """Time, images per second and energy of training, over all tasks."""
    columns = (
        mean_column("whole stream (s)", total("train_seconds"), 1),
        mean_column("training (s per task)", per_task("train_seconds"), 2),
        mean_column("preparation (s per task)", per_task("prepare_seconds"), 2),
        mean_column("consolidation (s per task)", per_task("consolidate_seconds"), 2),
        mean_column("images/s", images_per_second, 1),
        mean_column("passes per image", passes_made, 2),
        mean_column("passes without kept features", passes_without_cache, 2),
        mean_column("energy of the whole GPU (J per task)", per_task("energy_joules"), 0),
        mean_column("evaluation after the last task (s)", at_task("eval_seconds", "last"), 2),
    )
    return _measured_table(group, columns)


def sizes(group: Group) -> Table | None:
    """Operations and sizes, after the first and after the last task."""
    columns = [
        *(mean_column(f"GFLOPs per image, {end} task", at_task("flops", end, 1e9), 2) for end in ENDS),
        mean_column("FLOPs relative to the plain ViT, last task", flops_ratio, 3),
        *(mean_column(f"trainable (elements), {end} task", at_task("trainable", end), 0) for end in ENDS),
        *(mean_column(f"stored (KiB), {end} task", at_task("stored_bytes", end, KIB), 1) for end in ENDS),
        *(mean_column(f"deployed (MiB), {end} task", at_task("deployed_bytes", end, MIB), 1) for end in ENDS),
    ]
    return _measured_table(group, columns)
