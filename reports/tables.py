"""What a report says about one group, as plain text: tables, notes, warnings. Renderers escape it.

The Markdown report and the terminal show the same `Table`; neither computes a number of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum

from bench.costs import Latency, Parameters, Peak, percentiles
from bench.metrics import METRICS, Metric
from bench.record import DiagnosticValue, Record, is_list
from reports import diagnostics
from reports.groups import Group, Row, is_paper
from reports.stats import Estimate, estimate
from reports.text import DASH, EN_DASH, number, significant

HEADLINE = (
    "accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "learning_accuracy",
)

SCALE_OF_UNIT = {"fraction": "%", "difference": "points"}
ARROW = {"higher": "↑", "lower": "↓"}

INTERVAL_NOTE = "± is the half-width of the 95 % t-interval over seeds; n is the number of seeds."
PAIRED_NOTE = (
    "Same seed: same classes in the same order. The intervals are 95 % t-intervals of the differences, not "
    "corrected for the number of comparisons; where one contains 0 the two methods are not told apart."
)
DASH_NOTE = f"{DASH} means not defined or not measured."
DIAGNOSTICS_NOTE = (
    "After the last task, means over seeds. What has a value for each block is shown as the mean over blocks "
    "with the smallest and the largest block in parentheses."
)
TIME_NOTE = "Seconds are those of the clock: whatever else the machine was doing is in them."


@dataclass(frozen=True)
class Table:
    """A table of plain text; the first column holds names, the others numbers.

    `bold` are the (row, column) places, from 0, of what is to stand out.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Row], str]


def headline(group: Group) -> Table:
    """One row per method, best final accuracy first."""
    columns = [_metric_column(metric) for metric in METRICS if metric.name in HEADLINE]
    columns += [
        _Column("trainable parameters", lambda row: _show(_last(row, "trainable"), 0)),
        _Column("training (s)", lambda row: _show(estimate(map(_train_seconds, row.done)), 1)),
        _Column("n", _n),
    ]
    return _table(group, columns)


def other_metrics(group: Group) -> Table:
    """The metrics that the headline leaves out."""
    return _table(group, [_metric_column(metric) for metric in METRICS if metric.name not in HEADLINE])


def costs(group: Group) -> Table | None:
    """What was measured of each method's costs; None if nothing was."""
    columns = [
        _Column("kept by the method (elements)", lambda row: _show(_last(row, "stored"), 0)),
        _Column("needed to predict (elements)", lambda row: _show(_last(row, "deployed"), 0)),
        _Column("evaluation after the last task (s)", lambda row: _show(_evaluation(row), 2)),
        *(_latency_column(size) for size in _batch_sizes(group.records)),
        _Column("images/s", lambda row: _show(_throughput(row), 1)),
        *(_memory_column(kind, phase) for kind in ("cuda", "rss") for phase in ("training", "inference")),
        _Column("GFLOPs per image", lambda row: _show(_gflops(row), 2)),
    ]
    measured = [c for c in columns if any(c.cell(row) != DASH for row in group.rows)]
    return _table(group, measured) if measured else None


def told(group: Group) -> Table | None:
    """What the methods tell of themselves after the last task; None if they tell nothing, or tables only."""
    names = [name for name in diagnostics.names(group) if not diagnostics.only_tables(group, name)]
    columns = [_diagnostic_column(name) for name in names]
    return _table(group, columns) if columns else None


def paired(group: Group) -> tuple[str, Table] | None:
    """The reference's name, and how each method differs from it on the same seeds and class orders.

    The reference is the best method that learns the tasks one by one. None if no pair shares two seeds.
    """
    reference = next((row for row in group.rows if row.done and not row.last_only), None)
    if reference is None:
        return None
    others = [(row, _differences(row, reference)) for row in group.rows if row is not reference]
    rows = tuple(
        (
            row.method,
            _show(estimate(100 * d for d in found), 2),
            f"{sum(d > 0 for d in found)} of {len(found)}",
        )
        for row, found in others
        if len(found) > 1
    )
    columns = ("method", "difference in final accuracy (points)", "seeds on which it is better")
    return (reference.method, Table(columns, rows)) if rows else None


def unfinished(group: Group) -> list[str]:
    """A sentence per cell that has no result."""
    return [
        f"{row.method}, seed {record.seed}: {record.status}. {record.reason}"
        for row in group.rows
        for record in row.unfinished
    ]


def notes(group: Group) -> list[str]:
    """How to read the group's headline table."""
    found = [f"{INTERVAL_NOTE} {DASH_NOTE} {TIME_NOTE}"]
    single = [row.method for row in group.rows if len(row.done) == 1]
    if single:
        found.append(f"One seed only, hence no interval: {', '.join(single)}.")
    whole = [row.method for row in group.rows if row.last_only]
    if whole:
        found.append(f"Evaluated after the last task only: {', '.join(whole)}.")
    return found


def warnings(group: Group) -> list[str]:
    """What a reader must know before believing or comparing the group's numbers."""
    return [*_subset(group), *_recorded(group), *_equality(group), *_code(group)]


def _subset(group: Group) -> list[str]:
    found = []
    scale, eval_on = group.facts.get("scale"), group.facts.get("eval on")
    if scale not in (None, "full"):
        found.append(f"Scale {scale}: a subset, not comparable with published numbers.")
    if eval_on not in (None, "test"):
        found.append(
            f"Evaluated on {eval_on}, training images held out, and not on the test images: "
            "for choosing settings, not comparable with published numbers."
        )
    return found


def _recorded(group: Group) -> list[str]:
    texts = sorted({text for record in group.records for text in record.manifest.warnings})
    return [f"{text} ({_who(group, _carries(text))})" for text in texts]


def _carries(text: str) -> Callable[[Record], bool]:
    return lambda record: text in record.manifest.warnings


def _equality(group: Group) -> list[str]:
    found = []
    if any(map(is_paper, group.records)):
        found.append("Each method by its paper's recipe: the rows were not obtained under equal conditions.")
    if len({frozenset(record.seed for record in row.done) for row in group.rows if row.done}) > 1:
        found.append("Not all methods have results for the same seeds; their means are over different runs.")
    orders = {(record.seed, tuple(record.class_order or ())) for record in group.records if record.done}
    if len(orders) > len({seed for seed, _ in orders}):
        found.append("Within a seed not all methods learnt the classes in the same order.")
    machines = sorted({f"{r.manifest.device}, {r.manifest.threads} threads" for r in group.records if r.done})
    if len(machines) > 1:
        found.append(f"Times are not comparable, the cells ran on different machines: {'; '.join(machines)}.")
    return found


def _code(group: Group) -> list[str]:
    found = []
    if any(record.manifest.dirty for record in group.records):
        who = _who(group, lambda record: bool(record.manifest.dirty))
        found.append(f"The code had uncommitted changes ({who}): the commit does not tell what was run.")
    if len({record.manifest.commit for record in group.records if record.done}) > 1:
        found.append("The cells were run by different commits of the code.")
    return found


def _who(group: Group, concerned: Callable[[Record], bool]) -> str:
    rows = [row.method for row in group.rows if any(map(concerned, row.records))]
    return "all cells" if all(map(concerned, group.records)) else ", ".join(rows)


def _table(group: Group, columns: Sequence[_Column]) -> Table:
    return Table(
        ("method", *(column.title for column in columns)),
        tuple((row.method, *(column.cell(row) for column in columns)) for row in group.rows),
    )


def _metric_column(metric: Metric) -> _Column:
    title = f"{metric.title} ({SCALE_OF_UNIT[metric.unit]}) {ARROW[metric.direction]}"
    return _Column(title, lambda row: _show(estimate(_times(100, row.metric(metric.name))), 2))


def _times(factor: float, values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else factor * value for value in values]


def _show(found: Estimate | None, digits: int) -> str:
    """Numbers that are the same for every seed, such as counts of parameters, need no interval."""
    if found is None:
        return DASH
    mean = number(found.mean, digits)
    plain = found.half_width is None or (digits == 0 and found.half_width == 0)
    return mean if plain or found.half_width is None else f"{mean} ± {number(found.half_width, digits)}"


def _n(row: Row) -> str:
    if not row.unfinished:
        return str(len(row.done))
    statuses = ", ".join(sorted({record.status for record in row.unfinished}))
    return f"{len(row.done)} of {len(row.records)} ({statuses})"


def _differences(row: Row, reference: Row) -> list[float]:
    theirs = {
        (r.seed, tuple(r.class_order or ())): r.metrics["accuracy"] for r in reference.done if r.metrics
    }
    pairs = [
        (r.metrics["accuracy"], theirs.get((r.seed, tuple(r.class_order or ()))))
        for r in row.done
        if r.metrics
    ]
    return [a - b for a, b in pairs if a is not None and b is not None]


def _train_seconds(record: Record) -> float | None:
    seconds = (record.cost and record.cost.train_seconds) or [None]
    known = [value for value in seconds if value is not None]
    return fsum(known) if len(known) == len(seconds) else None


def _last(row: Row, kind: str) -> Estimate | None:
    return estimate(_last_of(record, kind) for record in row.done)


def _last_of(record: Record, kind: str) -> float | None:
    parameters = (record.cost and record.cost.parameters) or Parameters()
    values: list[int] | None = getattr(parameters, kind)
    return values[-1] if values else None


def _evaluation(row: Row) -> Estimate | None:
    return estimate((r.cost.eval_seconds or [None])[-1] if r.cost else None for r in row.done)


def _throughput(row: Row) -> Estimate | None:
    return estimate(record.cost.throughput if record.cost else None for record in row.done)


def _gflops(row: Row) -> Estimate | None:
    return estimate(r.cost.flops[-1] / 1e9 if r.cost and r.cost.flops else None for r in row.done)


def _memory_column(kind: str, phase: str) -> _Column:
    def mebibytes(record: Record) -> float | None:
        memory = record.cost.peak_memory if record.cost else None
        peak: Peak | None = getattr(memory, phase) if memory and memory.kind == kind else None
        return None if peak is None else peak.above / 2**20

    return _Column(
        f"peak memory, {phase} ({kind}, MiB)", lambda row: _show(estimate(map(mebibytes, row.done)), 0)
    )


def _diagnostic_column(name: str) -> _Column:
    def last(row: Row) -> str:
        return _told_cell((diagnostics.means(row, name) or [None])[-1])

    return _Column(diagnostics.title(name), last)


def _told_cell(value: DiagnosticValue) -> str:
    if is_list(value):
        ends = f"{significant(min(value))}{EN_DASH}{significant(max(value))}"
        return f"{significant(statistics.fmean(value))} ({ends})"
    return significant(value) if isinstance(value, float) else DASH


def _batch_sizes(records: Iterable[Record]) -> list[int]:
    return sorted({found.batch for r in records if r.cost for found in r.cost.latency or ()})


def _latency_column(size: int) -> _Column:
    def shown(row: Row) -> str:
        samples = [s for record in row.done for s in _samples(record, size)]
        if not samples:
            return DASH
        cuts = percentiles(samples)
        return f"{' / '.join(number(1000 * cuts[p - 1], 2) for p in (50, 95, 99))} (n = {len(samples)})"

    return _Column(f"latency, batch {size}: median / p95 / p99 (ms)", shown)


def _samples(record: Record, size: int) -> list[float]:
    """Of all seeds together: their percentiles are not means of percentiles."""
    found = last_latency(record, size)
    return found.model.samples if found else []


def last_latency(record: Record, batch: int) -> Latency | None:
    """What was measured at this batch size after the last experience."""
    found = [at for at in (record.cost and record.cost.latency) or () if at.batch == batch]
    return max(found, key=lambda at: at.experiences, default=None)
