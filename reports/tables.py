"""The tables of a group as plain text: headline, paired differences, other metrics, diagnostics.

All renderers (Markdown, HTML, LaTeX, CSV, terminal) show the same `Table`, escape its text, and compute no
number. To add a column:

    headline        one entry in `compared`
    other metrics   none here: every metric of `bench.metrics` that is not in `HEADLINE` has a column
    costs           one entry in the table's function in `reports.costs`
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.metrics import Metric, forgetting_by_task, metrics_of
from bench.model import Scenario
from bench.record import DiagnosticValue, Record, is_list
from reports import diagnostics, ranking
from reports.groups import Group, Row
from reports.ranking import Direction, Leaders, Run, Values
from reports.stats import Estimate, estimate
from reports.text import DASH, EN_DASH, number, significant
from reports.values import (
    MEMORY,
    Value,
    at_task,
    batch_sizes,
    final_accuracy,
    latency_ratio,
    metric_value,
    outer_batch_sizes,
    peak,
    training_memory,
)

#: The metrics of the headline, by scenario; all others are in the table of other metrics.
HEADLINE: Mapping[Scenario, tuple[str, ...]] = {
    "class-incremental": ("accuracy", "average_incremental_accuracy", "forgetting"),
    "domain-incremental": ("accuracy", "accuracy_weighted", "forgetting", "unseen_accuracy"),
}

SCALE_OF_UNIT = {"fraction": "%", "difference": "points"}
ARROW = {"higher": "↑", "lower": "↓"}

TIED = "≈"
DAGGER = "†"

INTERVAL_NOTE = (
    "± is the half-width of the 95 % t-interval over seeds; a number without ± is from one seed, or is the "
    "same for all seeds. n is the number of seeds."
)
DASH_NOTE = f"{DASH} means not defined or not measured."
MARKS_NOTE = (
    f"Bold: better than every other method (paired 95 % interval excludes 0). {TIED}: the best, or not "
    "significantly worse. Runs with the same seed and order of classes or domains are paired. Two methods "
    "with fewer than two paired runs have no interval; without one between the best and the runner-up, "
    "nothing is bold. The intervals are not corrected for the number of comparisons."
)
NO_MARKS_NOTE = (
    "Nothing is bold: methods are compared by the intervals of their paired differences, and no two methods "
    "have two seeds in common."
)
REFERENCE_NOTE = (
    "a reference, trained on all tasks at once and evaluated after the last task only; it has no rank and is "
    f"not considered for bold and {TIED}"
)
UPPER_BOUND_NOTE = (
    "an upper bound, which was told at test what a method is to find out; it has no rank and is not "
    f"considered for bold and {TIED}"
)
RATIO_NOTE = (
    "The latency ratio is the time of a prediction, relative to the plain timm ViT timed in the same rounds, "
    "after the last task."
)
PEAK_NOTE = (
    "Peak memory is what training added to the memory in use before the model was built; resident memory "
    "varies by some MiB between runs."
)
PAIRED_NOTE = (
    "Each value is the method's minus that of the first in rank, in runs with the same seed and order. "
    "± is the half-width of the 95 % t-interval of the differences, not corrected for the number of "
    "comparisons; where the interval contains 0, the two methods are not significantly different. A single "
    "common seed has no interval. No signed-rank test is made: with fewer than six common seeds its p-value "
    "cannot fall below 5 %, whatever the numbers."
)
BY_DOMAIN_NOTE = (
    "The order of the domains differs by seed. Forgetting of a domain is the mean over the seeds in which it "
    "was not the last one."
)
DIAGNOSTICS_NOTE = (
    "After the last task, means over seeds. A diagnostic with one value per block is shown as the mean over "
    "blocks, with the smallest and the largest in parentheses."
)


@dataclass(frozen=True)
class Table:
    """A table of plain text. Its first `heads` columns name what a row is about; the others hold numbers.

    `bold` are the (row, column) positions, counted from 0, to be emphasised.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    heads: int = 1


@dataclass(frozen=True)
class Column:
    """A title, and the text of each row."""

    title: str
    cell: Callable[[Row], str]


@dataclass(frozen=True)
class Quantity:
    """A value by which methods are compared. A headline column shows it and marks the best.

    `digits` are those after the decimal point; `direction` says which end is good.
    """

    title: str
    value: Value
    digits: int
    direction: Direction


# ---- building tables ---------------------------------------------------------------------------


def table(group: Group, columns: Sequence[Column]) -> Table:
    """A row per method, whose name is the first column."""
    return Table(
        ("method", *(column.title for column in columns)),
        tuple((row.method, *(column.cell(row) for column in columns)) for row in group.rows),
    )


def measured(group: Group, columns: Iterable[Column]) -> list[Column]:
    """The columns that have a value for at least one method."""
    return [column for column in columns if any(column.cell(row) != DASH for row in group.rows)]


def mean_column(title: str, value: Value, digits: int) -> Column:
    """A column of means over seeds, with their intervals."""
    return Column(title, lambda row: mean_with_interval(estimate(row.values(value)), digits))


def mean_with_interval(mean: Estimate | None, digits: int) -> str:
    """As `with_interval`, but without ± for what is the same for all seeds, such as a size."""
    if mean is not None and mean.half_width == 0:
        return number(mean.mean, digits)
    return with_interval(mean, digits)


def with_interval(mean: Estimate | None, digits: int) -> str:
    """A mean and the half-width of its interval, "75.00 ± 1.20"; a single seed has no interval."""
    if mean is None:
        return DASH
    text = number(mean.mean, digits)
    return text if mean.half_width is None else f"{text} ± {number(mean.half_width, digits)}"


# ---- headline ----------------------------------------------------------------------------------


def headline(group: Group) -> Table:
    """The main table: references, then the methods by rank, with the best of each column in bold."""
    quantities = compared(group)
    columns = [Column("rank", _rank_in(group)), Column("method", _name)]
    columns += [*map(_quantity_column, quantities), Column("n", _seeds)]
    leaders = {j: leaders_of(group, quantity) for j, quantity in enumerate(quantities, start=2)}
    tied = {(i, j) for j, column_leaders in leaders.items() for i in column_leaders.tied}
    bold = frozenset((first.best, j) for j, first in leaders.items() if first.best is not None)
    rows = tuple(
        tuple(f"{c.cell(row)} {TIED}" if (i, j) in tied else c.cell(row) for j, c in enumerate(columns))
        for i, row in enumerate(group.rows)
    )
    return Table(tuple(column.title for column in columns), rows, bold, heads=2)


def compared(group: Group) -> list[Quantity]:
    """The quantities of the headline: its metrics, and the costs that were measured in any cell."""
    metrics = [
        q for name, q in _metric_quantities(group.scenario).items() if name in HEADLINE[group.scenario]
    ]
    costs = [
        *map(_ratio_quantity, outer_batch_sizes(group.done)),
        *map(_memory_quantity, MEMORY),
        Quantity("trainable parameters, last task", at_task("trainable", "last"), 0, "lower"),
    ]
    return [*metrics, *(quantity for quantity in costs if _is_measured(group, quantity))]


def _is_measured(group: Group, quantity: Quantity) -> bool:
    return any(value is not None for row in group.rows for value in row.values(quantity.value))


def leaders_of(group: Group, quantity: Quantity) -> Leaders:
    """Who leads in a quantity, by position among the group's rows."""
    return ranking.leaders(_ranked_values(group, quantity.value), quantity.direction)


def _ranked_values(group: Group, value: Value) -> list[Values]:
    """Values by run of each row; empty for rows that are not ranked."""
    return [row.by_run(value) if row.is_ranked else {} for row in group.rows]


def _rank_in(group: Group) -> Callable[[Row], str]:
    ranks = ranking.ranks(_ranked_values(group, final_accuracy))
    by_name = {
        row.method: DASH if rank is None else str(rank) for row, rank in zip(group.rows, ranks, strict=True)
    }
    return lambda row: by_name[row.method]


def _name(row: Row) -> str:
    return f"{row.method} {DAGGER}" if row.contaminated else row.method


def _seeds(row: Row) -> str:
    if not row.unfinished:
        return str(len(row.done))
    statuses = ", ".join(sorted({record.status for record in row.unfinished}))
    return f"{len(row.done)} of {len(row.records)} ({statuses})"


def _quantity_column(quantity: Quantity) -> Column:
    title = f"{quantity.title} {ARROW[quantity.direction]}"
    return mean_column(title, quantity.value, quantity.digits)


def _metric_quantities(scenario: Scenario) -> dict[str, Quantity]:
    """Every metric of a scenario, by name."""
    return {metric.name: _metric_quantity(metric, scenario) for metric in metrics_of(scenario)}


def _metric_quantity(metric: Metric, scenario: Scenario) -> Quantity:
    title = f"{metric.title_in(scenario)} ({SCALE_OF_UNIT[metric.unit]})"
    return Quantity(title, metric_value(metric.name), 2, metric.direction)


def _ratio_quantity(batch: int) -> Quantity:
    return Quantity(f"latency ratio to the plain ViT, batch {batch}", latency_ratio(batch), 2, "lower")


def _memory_quantity(kind: str) -> Quantity:
    return Quantity(f"peak memory of training ({MEMORY[kind]}, MiB)", training_memory(kind), 0, "lower")


def notes(group: Group) -> list[str]:
    """How to read the group's headline."""
    sentences = [f"{INTERVAL_NOTE} {DASH_NOTE}", MARKS_NOTE if _has_interval(group) else NO_MARKS_NOTE]
    if batch_sizes(group.done):
        sentences.append(RATIO_NOTE)
    if any(peak(record, kind, "training") for record in group.done for kind in MEMORY):
        sentences.append(PEAK_NOTE)
    single = [row.method for row in group.rows if len(row.done) == 1]
    if single:
        sentences.append(f"One seed only, so no interval: {', '.join(single)}.")
    references = [row.method for row in group.rows if row.is_reference]
    if references:
        sentences.append(f"{', '.join(references)}: {REFERENCE_NOTE}.")
    bounds = [row.method for row in group.rows if row.is_upper_bound]
    if bounds:
        sentences.append(f"{', '.join(bounds)}: {UPPER_BOUND_NOTE}.")
    return sentences


def _has_interval(group: Group) -> bool:
    """Whether any two of the ranked methods have at least two paired runs."""
    values = [by_run for by_run in _ranked_values(group, final_accuracy) if by_run]
    return any(len(ranking.differences(a, b)) > 1 for i, a in enumerate(values) for b in values[i + 1 :])


# ---- other tables ------------------------------------------------------------------------------


def other_metrics(group: Group) -> Table:
    """The metrics that are not in the headline."""
    headline = HEADLINE[group.scenario]
    others = [q for name, q in _metric_quantities(group.scenario).items() if name not in headline]
    return table(group, list(map(_quantity_column, others)))


def by_domain(group: Group) -> Table | None:
    """Final accuracy and forgetting of each domain by name; None in a class-incremental stream, and where one
    test set is that of all domains.

    The order of the domains differs by seed, and the domain that came last has no forgetting.
    """
    with_matrix = [r for r in group.done if r.domains and r.counts and len(r.counts) == r.tasks]
    if not with_matrix:
        return None
    names = sorted({name for record in with_matrix for name in record.domains or ()})
    accuracies = [mean_column(f"{name}: accuracy (%) ↑", _accuracy_on(name), 2) for name in names]
    losses = [_mean_where_defined(f"{name}: forgetting (points) ↓", _forgetting_of(name)) for name in names]
    return table(group, measured(group, [*accuracies, *losses]))


def _accuracy_on(domain: str) -> Value:
    def value(record: Record) -> float | None:
        position, matrix = _position(record, domain), record.accuracy_matrix
        final = None if matrix is None or position is None else matrix[-1][position]
        return None if final is None else 100 * final

    return value


def _forgetting_of(domain: str) -> Value:
    def value(record: Record) -> float | None:
        position = _position(record, domain)
        if position is None or record.correct is None or record.counts is None:
            return None
        lost = [*forgetting_by_task(record.correct, record.counts), None][position]
        return None if lost is None else 100 * lost

    return value


def _position(record: Record, domain: str) -> int | None:
    domains = record.domains or []
    return domains.index(domain) if domain in domains else None


def _mean_where_defined(title: str, value: Value) -> Column:
    """A column of means over the seeds that have the value."""

    def cell(row: Row) -> str:
        known = [number for number in row.values(value) if number is not None]
        return mean_with_interval(estimate(known), 2)

    return Column(title, cell)


def paired(group: Group) -> tuple[str, Table] | None:
    """The name of the first in rank, and how each other method differs from it in paired runs.

    None if no other method has a run that can be paired with one of the first.
    """
    if not group.ranked:
        return None
    first = group.ranked[0]
    rows = tuple(
        _paired_row(row, first) for row in group.rows if row is not first and _differences(row, first)
    )
    columns = (
        "method",
        "difference in final accuracy (points)",
        "by seed (points)",
        "seeds with higher accuracy",
        "difference in forgetting (points)",
    )
    return (first.method, Table(columns, rows)) if rows else None


def _differences(row: Row, first: Row, value: Value = final_accuracy) -> Mapping[Run, float]:
    return ranking.differences(row.by_run(value), first.by_run(value))


def _paired_row(row: Row, first: Row) -> tuple[str, ...]:
    accuracy = _differences(row, first)
    forgetting = _differences(row, first, metric_value("forgetting"))
    return (
        row.method,
        mean_with_interval(estimate(accuracy.values()), 2),
        ", ".join(f"{seed}: {signed(value)}" for (seed, _), value in accuracy.items()),
        f"{sum(value > 0 for value in accuracy.values())} of {len(accuracy)}",
        mean_with_interval(estimate(forgetting.values()), 2),
    )


def signed(value: float) -> str:
    """Two digits after the point, with a plus sign above zero."""
    text = number(value, 2)
    return f"+{text}" if value > 0 else text


def diagnostics_table(group: Group) -> Table | None:
    """The methods' diagnostics after the last task; None if they have none, or only tables."""
    names = [name for name in diagnostics.names(group) if not diagnostics.only_tables(group, name)]
    columns = [_diagnostic_column(name) for name in names]
    return table(group, columns) if columns else None


def _diagnostic_column(name: str) -> Column:
    def last(row: Row) -> str:
        return _diagnostic_cell((diagnostics.means(row, name) or [None])[-1])

    return Column(diagnostics.title(name), last)


def _diagnostic_cell(value: DiagnosticValue) -> str:
    if is_list(value):
        ends = f"{significant(min(value))}{EN_DASH}{significant(max(value))}"
        return f"{significant(statistics.fmean(value))} ({ends})"
    return significant(value) if isinstance(value, float) else DASH
