"""The sentences at the top of a report, as plain text: what was compared, and which method is best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.record import Record
from reports import ranking
from reports.groups import Group, Row
from reports.ranking import significantly_better
from reports.stats import estimate
from reports.text import number
from reports.values import final_accuracy
from reports.warnings import warnings


def overview(records: Sequence[Record], groups: Sequence[Group]) -> list[str]:
    """Methods, benchmarks, seeds and cells; how many cells did not finish, and what was not run at all."""
    seeds = sorted({record.seed for record in records})
    return [
        _counted("method", (record.method for record in records)),
        _counted("benchmark", (record.benchmark for record in records)),
        f"Seeds ({len(seeds)}): {', '.join(map(str, seeds))}",
        f"Cells: {len(records)}, of which {_statuses(records)}",
        *(f"Not run on {g.title}: {', '.join(_absent(records, g))}" for g in groups if _absent(records, g)),
    ]


def _counted(what: str, names: Iterable[str]) -> str:
    distinct = sorted(set(names))
    return f"{what.capitalize()}s ({len(distinct)}): {', '.join(distinct)}"


def _statuses(records: Sequence[Record]) -> str:
    counts = Counter(record.status for record in records)
    done = counts.pop("done", 0)
    return ", ".join([f"{done} done", *(f"{count} {status}" for status, count in sorted(counts.items()))])


def _absent(records: Sequence[Record], g: Group) -> list[str]:
    """The methods without any cell in the group."""
    return sorted({record.method for record in records} - {record.method for record in g.records})


def answer(group: Group) -> str:
    """Which method is best on the group's benchmark, by how much, and which others may be as good."""
    ranked = [row for row in group.ranked if row.by_run(final_accuracy)]
    if not ranked:
        return "no method that learns task by task has a result."
    return " ".join([*_verdict(ranked[0], ranked[1:]), *_references(group), *_caveat(group)])


def _verdict(first: Row, others: Sequence[Row]) -> list[str]:
    if not others:
        return [f"only {first.method} has a result to compare: {_mean_accuracy(first)}."]
    verdicts = {row.method: _is_better(first, row) for row in others}
    best = verdicts[others[0].method] and False not in verdicts.values()
    claim = "is best" if best else "has the highest mean"
    return [
        f"{first.method} {claim}: {_mean_accuracy(first)}, {_lead(first, others[0])}.",
        *_exceptions(first, others, verdicts),
    ]


def _exceptions(first: Row, others: Sequence[Row], verdicts: Mapping[str, bool | None]) -> Iterator[str]:
    """The methods that the first is not significantly better than. On the seeds that two methods have in
    common, the first can even be the worse one."""
    worse = [row.method for row in others if _is_better(row, first)]
    alike = [name for name, verdict in verdicts.items() if verdict is False and name not in worse]
    unknown = [name for name, verdict in verdicts.items() if verdict is None]
    if alike:
        yield f"It is not significantly different from: {', '.join(alike)}."
    if worse:
        yield f"On common seeds it is significantly worse than: {', '.join(worse)}."
    if unknown:
        yield f"Fewer than two common seeds, so no interval, with: {', '.join(unknown)}."


def _is_better(a: Row, b: Row) -> bool | None:
    return significantly_better(a.by_run(final_accuracy), b.by_run(final_accuracy))


def _mean_accuracy(row: Row) -> str:
    return f"{number(ranking.mean(row.by_run(final_accuracy)), 2)} %"


def _lead(first: Row, second: Row) -> str:
    """The difference on common seeds, which may differ from the difference of the two means."""
    lead = estimate(ranking.differences(first.by_run(final_accuracy), second.by_run(final_accuracy)).values())
    if lead is None:
        return f"ahead of {second.method}, with which it has no seed in common"
    if abs(lead.mean) < ranking.TOLERANCE:
        return f"level with {second.method}"
    points = f"{number(abs(lead.mean), 2)} points {'above' if lead.mean >= 0 else 'below'} {second.method}"
    ends = ranking.interval(lead)
    if ends is None:
        return f"{points} on the one common seed"
    low, high = (number(end, 2) for end in ends)
    return f"{points} on {lead.n} common seeds (95 % interval of the difference {low} to {high})"


def _references(group: Group) -> list[str]:
    rows = [row for row in group.rows if row.is_reference and row.by_run(final_accuracy)]
    return [
        f"For reference, {row.method}, trained on all tasks at once: {_mean_accuracy(row)}." for row in rows
    ]


def _caveat(group: Group) -> list[str]:
    if any(row.contaminated for row in group.rows):
        return ["Contaminated, see the warnings."]
    return ["See the warnings."] if warnings(group) else []
