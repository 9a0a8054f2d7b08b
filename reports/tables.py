"""What a report says about one group, as plain text: tables, notes, warnings. Renderers escape it.

The Markdown report and the terminal show the same `Table`; neither computes a number of its own. The tables
of costs are in `reports.costs`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.costs import Latency, Peak
from bench.metrics import METRICS, Metric
from bench.record import DiagnosticValue, Record, is_list
from reports import diagnostics, ranking
from reports.groups import CONTAMINATED, Group, Row, is_paper
from reports.ranking import Direction, Run, Standing, Values
from reports.stats import Estimate, estimate
from reports.text import DASH, EN_DASH, counted, number, significant

HEADLINE = ("accuracy", "average_incremental_accuracy", "forgetting")

SCALE_OF_UNIT = {"fraction": "%", "difference": "points"}
ARROW = {"higher": "↑", "lower": "↓"}

#: What each kind of memory is called where it is shown.
MEMORY = {"cuda": "allocated on the GPU", "rss": "resident"}

TIED = "≈"
DAGGER = "†"

#: Below it one disturbed round moves a median.
ENOUGH_ROUNDS = 3

INTERVAL_NOTE = (
    "± is the half-width of the 95 % t-interval over seeds; a number without it is of one seed, or the same "
    "for all. n is the number of seeds."
)
DASH_NOTE = f"{DASH} means not defined or not measured."
MARKS_NOTE = (
    "Bold is the best of its column, where the 95 % t-interval of its difference from each other method, on "
    "the same seeds and class orders, excludes 0. Methods with fewer than two common seeds have no interval; "
    f"without one between the best and the runner-up nothing is bold. {TIED} marks the best and those not "
    "told apart from it. The intervals are not corrected for the number of comparisons."
)
NO_MARKS_NOTE = (
    "Nothing is bold: methods are told apart by the interval of their differences, and no two of them "
    "have two seeds in common."
)
REFERENCE_NOTE = (
    "a reference, trained on all tasks at once and evaluated after the last one only; it has no rank "
    f"and takes no part in bold and {TIED}"
)
RATIO_NOTE = (
    "A latency ratio is the time of a prediction over that of the plain timm ViT in the same rounds, "
    "after the last task."
)
PEAK_NOTE = (
    "Peak memory is what training added to what was in use before the model was built; what is resident "
    "differs by some MiB from run to run."
)
PAIRED_NOTE = (
    "A method's value less that of the first in rank. Same seed: same classes in the same order. ± is the "
    "half-width of the 95 % t-interval of the differences, not corrected for the number of comparisons; "
    "where the interval contains 0 the two methods are not told apart, and one common seed has no interval. "
    "With fewer than six common seeds a signed-rank test cannot fall below 5 %, whatever the numbers: none "
    "is made."
)
DIAGNOSTICS_NOTE = (
    "After the last task, means over seeds. What has a value for each block is shown as the mean over blocks "
    "with the smallest and the largest block in parentheses."
)


@dataclass(frozen=True)
class Table:
    """A table of plain text; the first `heads` columns say what a row is of, the others hold numbers.

    `bold` are the (row, column) places, from 0, of what is to stand out.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    heads: int = 1


@dataclass(frozen=True)
class Column:
    """A column with a row's text."""

    title: str
    cell: Callable[[Row], str]


@dataclass(frozen=True)
class Quantity:
    """A number about a finished cell that methods are compared by, in the unit that is shown."""

    title: str
    value: Callable[[Record], float | None]
    digits: int
    direction: Direction


def headline(group: Group) -> Table:
    """References, then the methods by rank: what the table is read for, with the best of each column."""
    quantities = compared(group)
    columns = [Column("rank", _rank_in(group)), Column("method", _name)]
    columns += [*map(_quantity_column, quantities), Column("n", _n)]
    standings = {j: standing(group, quantity) for j, quantity in enumerate(quantities, start=2)}
    tied = {(i, j) for j, found in standings.items() for i in found.tied}
    bold = frozenset((found.best, j) for j, found in standings.items() if found.best is not None)
    rows = tuple(
        tuple(f"{c.cell(row)} {TIED}" if (i, j) in tied else c.cell(row) for j, c in enumerate(columns))
        for i, row in enumerate(group.rows)
    )
    return Table(tuple(column.title for column in columns), rows, bold, heads=2)


def compared(group: Group) -> list[Quantity]:
    """The quantities of the headline: its metrics, and those costs that any cell has."""
    metrics = [_metric_quantity(metric) for metric in METRICS if metric.name in HEADLINE]
    costs = [
        *map(_ratio_quantity, outer_batch_sizes(group)),
        *map(_memory_quantity, MEMORY),
        Quantity("trainable parameters, last task", _trainable, 0, "lower"),
    ]
    return [*metrics, *(q for q in costs if any(q.value(record) is not None for record in group.done))]


def standing(group: Group, quantity: Quantity) -> Standing:
    """Who leads in a quantity, by position among the group's rows."""
    return ranking.standing(_competing(group, quantity.value), quantity.direction)


def accuracy(record: Record) -> float | None:
    """The final accuracy in percent, by which methods are ranked."""
    return scaled(record, "accuracy")


def scaled(record: Record, metric: str) -> float | None:
    """A metric in percent or points."""
    value = record.metrics[metric] if record.metrics else None
    return None if value is None else 100 * value


def other_metrics(group: Group) -> Table:
    """The metrics that the headline leaves out."""
    found = [_metric_quantity(metric) for metric in METRICS if metric.name not in HEADLINE]
    return table(group, list(map(_quantity_column, found)))


def told(group: Group) -> Table | None:
    """What the methods tell of themselves after the last task; None if they tell nothing, or tables only."""
    names = [name for name in diagnostics.names(group) if not diagnostics.only_tables(group, name)]
    columns = [_diagnostic_column(name) for name in names]
    return table(group, columns) if columns else None


def paired(group: Group) -> tuple[str, Table] | None:
    """The name of the first in rank, and how each method differs from it on the same seeds and class orders.

    None if no other has a seed in common with it.
    """
    if not group.ranked:
        return None
    first = group.ranked[0]
    rows = tuple(_paired_row(row, first) for row in group.rows if row is not first and _both(row, first))
    columns = (
        "method",
        "difference in final accuracy (points)",
        "of each seed (points)",
        "more accurate on",
        "difference in forgetting (points)",
    )
    return (first.method, Table(columns, rows)) if rows else None


def _both(row: Row, first: Row) -> dict[Run, float]:
    return ranking.differences(row.by_run(accuracy), first.by_run(accuracy))


def _paired_row(row: Row, first: Row) -> tuple[str, ...]:
    found = _both(row, first)
    forgetting = _metric_value("forgetting")
    drops = ranking.differences(row.by_run(forgetting), first.by_run(forgetting))
    return (
        row.method,
        show(estimate(found.values()), 2),
        ", ".join(f"{seed}: {signed(value)}" for (seed, _), value in found.items()),
        f"{sum(value > 0 for value in found.values())} of {len(found)}",
        show(estimate(drops.values()), 2),
    )


def signed(value: float) -> str:
    """Two digits, with a plus where it is above zero."""
    text = number(value, 2)
    return f"+{text}" if value > 0 else text


def unfinished(group: Group) -> list[str]:
    """A sentence per cell that has no result."""
    return [
        f"{row.method}, seed {record.seed}: {record.status}. {record.reason}"
        for row in group.rows
        for record in row.unfinished
    ]


def notes(group: Group) -> list[str]:
    """How to read the group's headline table."""
    found = [f"{INTERVAL_NOTE} {DASH_NOTE}", MARKS_NOTE if _has_interval(group) else NO_MARKS_NOTE]
    if batch_sizes(group.done):
        found.append(RATIO_NOTE)
    if any(peak(record, kind, "training") for record in group.done for kind in MEMORY):
        found.append(PEAK_NOTE)
    single = [row.method for row in group.rows if len(row.done) == 1]
    if single:
        found.append(f"One seed only, hence no interval: {', '.join(single)}.")
    whole = [row.method for row in group.rows if row.last_only]
    if whole:
        found.append(f"{', '.join(whole)}: {REFERENCE_NOTE}.")
    return found


def _has_interval(group: Group) -> bool:
    """Whether any two of the methods that are compared have two seeds in common."""
    values = [found for found in _competing(group, accuracy) if found]
    return any(len(ranking.differences(a, b)) > 1 for i, a in enumerate(values) for b in values[i + 1 :])


def warnings(group: Group) -> list[str]:
    """What a reader must know before believing or comparing the group's numbers."""
    return [*_subset(group), *_recorded(group), *_equality(group), *_timing(group), *_code(group)]


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
    return [f"{_mark(text)}{text} ({_who(group, _carries(text))})" for text in texts]


def _mark(text: str) -> str:
    return f"{DAGGER} " if text.startswith(CONTAMINATED) else ""


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
    ran = [record.manifest for record in group.done]
    machines = sorted({f"{m.device}, {counted(m.threads, 'thread')}" for m in ran})
    if len(machines) > 1:
        found.append(f"Times are not comparable, the cells ran on different machines: {'; '.join(machines)}.")
    return found + _spread(group) + _resumed(group)


def _spread(group: Group) -> list[str]:
    ran = {(record.manifest.executor, record.manifest.workers) for record in group.done}
    if all(workers == 1 for _, workers in ran):
        return []
    said = [
        f"{executor}, {'as many as fit' if workers is None else workers} at a time"
        for executor, workers in sorted(ran, key=str)
    ]
    return [f"Cells were run beside each other, which lengthens the times of training: {'; '.join(said)}."]


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
        "These cells were interrupted and taken up again; their times and their memory of training come from "
        f"several processes; on a CPU, all else is as in an uninterrupted run: {'; '.join(cells)}."
    ]


def _timing(group: Group) -> list[str]:
    found = []
    pending = [row.method for row in group.rows if any(map(_awaits_timing, row.done))]
    if pending:
        found.append(
            f"The inference of these was not timed: {', '.join(pending)}. The command that made the cells "
            "goes on with it, if it was stopped before the end."
        )
    conditions = [r.cost.conditions for r in group.done if r.cost and r.cost.conditions]
    places = sorted({f"{c.device}, {counted(c.threads, 'thread')}, {c.precision}" for c in conditions})
    if len(places) > 1:
        found.append(f"Latencies were measured under different conditions: {'; '.join(places)}.")
    rounds = min((at.rounds for record in group.done for at in latencies(record)), default=ENOUGH_ROUNDS)
    if rounds < ENOUGH_ROUNDS:
        found.append(f"Latencies of {rounds} rounds show that timing runs, and not how long inference takes.")
    restless = [
        f"{row.method}, seed {record.seed}, batch {at.batch} after task {at.experiences}"
        for row in group.rows
        for record in row.done
        for at in latencies(record)
        if not at.stable
    ]
    if restless:
        found.append(f"The warm-up of these latencies had not settled: {'; '.join(restless)}.")
    return found


def _awaits_timing(record: Record) -> bool:
    """Operations are counted with the training, inference is timed after that of the whole grid."""
    return bool(sizes(record, "flops") and record.cost and not record.cost.latency)


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


def table(group: Group, columns: Sequence[Column]) -> Table:
    """A line for each method, its name first."""
    return Table(
        ("method", *(column.title for column in columns)),
        tuple((row.method, *(column.cell(row) for column in columns)) for row in group.rows),
    )


def measured(group: Group, columns: Iterable[Column]) -> list[Column]:
    """The columns in which anything was measured."""
    return [column for column in columns if any(column.cell(row) != DASH for row in group.rows)]


def show(found: Estimate | None, digits: int) -> str:
    """As `with_interval`, but none for what is the same for all seeds, such as a size."""
    if found is not None and found.half_width == 0:
        return number(found.mean, digits)
    return with_interval(found, digits)


def with_interval(found: Estimate | None, digits: int) -> str:
    """A mean and the half-width of its interval, which one seed does not have."""
    if found is None:
        return DASH
    mean = number(found.mean, digits)
    return mean if found.half_width is None else f"{mean} ± {number(found.half_width, digits)}"


def shown(row: Row, value: Callable[[Record], float | None], digits: int) -> str:
    """A row's mean over seeds with its interval."""
    return show(estimate(map(value, row.done)), digits)


def _competing(group: Group, value: Callable[[Record], float | None]) -> list[Values]:
    """Values by run for each row; none for those that are not compared."""
    return [row.by_run(value) if row.competes else {} for row in group.rows]


def _rank_in(group: Group) -> Callable[[Row], str]:
    found = ranking.ranks(_competing(group, accuracy))
    by_name = {
        row.method: DASH if rank is None else str(rank) for row, rank in zip(group.rows, found, strict=True)
    }
    return lambda row: by_name[row.method]


def _name(row: Row) -> str:
    return f"{row.method} {DAGGER}" if row.contaminated else row.method


def _n(row: Row) -> str:
    if not row.unfinished:
        return str(len(row.done))
    statuses = ", ".join(sorted({record.status for record in row.unfinished}))
    return f"{len(row.done)} of {len(row.records)} ({statuses})"


def _quantity_column(quantity: Quantity) -> Column:
    title = f"{quantity.title} {ARROW[quantity.direction]}"
    return Column(title, lambda row: shown(row, quantity.value, quantity.digits))


def _metric_value(name: str) -> Callable[[Record], float | None]:
    return lambda record: scaled(record, name)


def _metric_quantity(metric: Metric) -> Quantity:
    title = f"{metric.title} ({SCALE_OF_UNIT[metric.unit]})"
    return Quantity(title, _metric_value(metric.name), 2, metric.direction)


def _ratio_quantity(batch: int) -> Quantity:
    return Quantity(f"latency ratio to the plain ViT, batch {batch}", latency_ratio(batch), 2, "lower")


def latency_ratio(batch: int) -> Callable[[Record], float | None]:
    """A cell's ratio to the plain ViT after the last experience."""

    def ratio(record: Record) -> float | None:
        found = last_latency(record, batch)
        return found.ratio if found else None

    return ratio


def _memory_quantity(kind: str) -> Quantity:
    return Quantity(f"peak memory of training ({MEMORY[kind]}, MiB)", training_memory(kind), 0, "lower")


def training_memory(kind: str) -> Callable[[Record], float | None]:
    """What a cell's training added to the baseline, in MiB; None if its memory is of another kind."""

    def mebibytes(record: Record) -> float | None:
        found = peak(record, kind, "training")
        return found.above / 2**20 if found else None

    return mebibytes


def peak(record: Record, kind: str, phase: str) -> Peak | None:
    """The peak of "training" or "inference", if it is of this kind of memory."""
    memory = record.cost.peak_memory if record.cost else None
    found: Peak | None = getattr(memory, phase) if memory and memory.kind == kind else None
    return found


def sizes(record: Record, kind: str) -> list[int]:
    """A field of `bench.costs.ExperienceCost` for each experience; empty if it was not measured."""
    return record.cost.by_experience(kind) if record.cost else []


def _trainable(record: Record) -> float | None:
    found = sizes(record, "trainable")
    return found[-1] if found else None


def _diagnostic_column(name: str) -> Column:
    def last(row: Row) -> str:
        return _told_cell((diagnostics.means(row, name) or [None])[-1])

    return Column(diagnostics.title(name), last)


def _told_cell(value: DiagnosticValue) -> str:
    if is_list(value):
        ends = f"{significant(min(value))}{EN_DASH}{significant(max(value))}"
        return f"{significant(statistics.fmean(value))} ({ends})"
    return significant(value) if isinstance(value, float) else DASH


def latencies(record: Record) -> list[Latency]:
    """All that was measured of a cell's latency."""
    return (record.cost and record.cost.latency) or []


def batch_sizes(records: Iterable[Record]) -> list[int]:
    """The batches at which latency was measured, rising."""
    return sorted({found.batch for record in records for found in latencies(record)})


def outer_batch_sizes(group: Group) -> list[int]:
    """The smallest and the largest batch at which latency was measured."""
    found = batch_sizes(group.done)
    return sorted({*found[:1], *found[-1:]})


def last_latency(record: Record, batch: int) -> Latency | None:
    """What was measured at this batch size after the last experience."""
    found = [at for at in latencies(record) if at.batch == batch]
    return max(found, key=lambda at: at.experiences, default=None)
