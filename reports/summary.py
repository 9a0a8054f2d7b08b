"""What was compared, and the answer: the sentences at the top of a report, as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.record import Record
from reports import ranking
from reports.groups import Group, Row
from reports.stats import estimate
from reports.tables import accuracy, warnings
from reports.text import number


def overview(records: Sequence[Record], groups: Sequence[Group]) -> list[str]:
    """Methods, benchmarks, seeds, cells; what did not finish, and what was not run at all."""
    seeds = sorted({record.seed for record in records})
    return [
        _counted("method", (record.method for record in records)),
        _counted("benchmark", (record.benchmark for record in records)),
        f"Seeds ({len(seeds)}): {', '.join(map(str, seeds))}",
        f"Cells: {len(records)}, of which {_fates(records)}",
        *(_absent(records, g) for g in groups if _lacking(records, g)),
    ]


def _counted(what: str, names: Iterable[str]) -> str:
    found = sorted(set(names))
    return f"{what.capitalize()}s ({len(found)}): {', '.join(found)}"


def _fates(records: Sequence[Record]) -> str:
    fates = Counter(record.status for record in records)
    done = fates.pop("done", 0)
    return ", ".join([f"{done} done", *(f"{count} {status}" for status, count in sorted(fates.items()))])


def _lacking(records: Sequence[Record], g: Group) -> list[str]:
    return sorted({record.method for record in records} - {record.method for record in g.records})


def _absent(records: Sequence[Record], g: Group) -> str:
    return f"No cell on {g.title} of: {', '.join(_lacking(records, g))}"


def answer(group: Group) -> str:
    """Which method is best on the group's benchmark, by how much, and from which it is not told apart."""
    ranked = [row for row in group.ranked if row.by_run(accuracy)]
    if not ranked:
        return "no method that learns task by task has a result."
    return " ".join([_verdict(ranked), *_references(group), *_caveat(group)])


def _verdict(ranked: Sequence[Row]) -> str:
    first, others = ranked[0], ranked[1:]
    if not others:
        return f"only {first.method} has a result to compare: {_final(first)}."
    told = {row.method: ranking.exceeds(first.by_run(accuracy), row.by_run(accuracy)) for row in others}
    tied = [name for name, verdict in told.items() if verdict is False]
    unknown = [name for name, verdict in told.items() if verdict is None]
    best = told[others[0].method] and not tied
    sentences = [
        f"{first.method} {'is best' if best else 'has the highest mean'}: {_final(first)}, "
        f"{_lead(first, others[0])}."
    ]
    if tied:
        sentences.append(f"It is not told apart from: {', '.join(tied)}.")
    if unknown:
        sentences.append(f"Fewer than two common seeds, hence no interval, with: {', '.join(unknown)}.")
    return " ".join(sentences)


def _final(row: Row) -> str:
    return f"{number(ranking.mean(row.by_run(accuracy)), 2)} %"


def _lead(first: Row, second: Row) -> str:
    """The difference on common seeds, which need not be that of the two means."""
    found = estimate(ranking.differences(first.by_run(accuracy), second.by_run(accuracy)).values())
    if found is None:
        return f"ahead of {second.method}, with which it has no seed in common"
    if abs(found.mean) < ranking.TOLERANCE:
        return f"level with {second.method}"
    points = f"{number(abs(found.mean), 2)} points {'above' if found.mean >= 0 else 'below'} {second.method}"
    ends = ranking.interval(found)
    if ends is None:
        return f"{points} on the one common seed"
    low, high = (number(end, 2) for end in ends)
    return f"{points} on {found.n} common seeds (95 % interval of the difference {low} to {high})"


def _references(group: Group) -> list[str]:
    rows = [row for row in group.rows if row.last_only and row.by_run(accuracy)]
    return [f"For reference, {row.method}, trained on all tasks at once: {_final(row)}." for row in rows]


def _caveat(group: Group) -> list[str]:
    if any(row.contaminated for row in group.rows):
        return ["Contaminated, see the warnings."]
    return ["See the warnings."] if warnings(group) else []
