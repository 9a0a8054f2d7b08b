"""Which records may stand in one table: those of one benchmark, obtained under the same conditions.

Content decides, not names: two cells share a row if their method's resolved configuration is equal, and
a table if everything else is, the seed and what follows from it aside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.record import Record
from methods.errors import UsageError
from reports.ranking import Run
from reports.stats import estimate
from reports.text import slug

#: Name of a condition -> its value as text; None where the cell never came to know it.
Facts = dict[str, str | None]

#: Parts of a configuration that belong to one cell (its method, its seed) or are told by the manifest.
_NOT_SHARED = frozenset({"method", "seed", "class_order", "task_sizes", "split_sha256", "backbone_sha256"})

#: What a reader looks for first; the rest follows by name, the hashes last.
_FIRST = ("protocol", "scale", "eval on", "tasks", "backbone", "image size", "epochs", "batch size")

#: How the warning of a cell begins whose backbone was pre-trained on the benchmark's images.
CONTAMINATED = "contaminated"

HASHES = ("backbone sha256", "data sha256", "split sha256")


@dataclass(frozen=True)
class Row:
    """The cells of one method under one condition, by seed."""

    method: str
    records: tuple[Record, ...]

    @property
    def done(self) -> list[Record]:
        """The cells that have results."""
        return [record for record in self.records if record.done]

    @property
    def unfinished(self) -> list[Record]:
        """The cells that failed, were interrupted or skipped."""
        return [record for record in self.records if not record.done]

    @property
    def last_only(self) -> bool:
        """Evaluated after the last task only, as a method that trains on all tasks at once is."""
        lacking = [r.metrics["learning_accuracy"] is None for r in self.done if r.metrics]
        return bool(lacking) and all(lacking)

    @property
    def competes(self) -> bool:
        """Whether it is compared with other rows: it has a result, and learnt the tasks one by one."""
        return bool(self.done) and not self.last_only

    @property
    def contaminated(self) -> bool:
        """Whether a cell's backbone had seen the images before."""
        return any(text.startswith(CONTAMINATED) for r in self.records for text in r.manifest.warnings)

    def by_run(self, value: Callable[[Record], float | None]) -> dict[Run, float]:
        """The value of each finished cell; empty if one has none."""
        found = {(r.seed, tuple(r.class_order or ())): value(r) for r in self.done}
        known = {run: number for run, number in found.items() if number is not None}
        return known if len(known) == len(found) else {}

    def metric(self, name: str) -> list[float | None]:
        """One value per finished cell, fractions."""
        return [record.metrics[name] for record in self.done if record.metrics]


@dataclass(frozen=True)
class Group:
    """One table: a benchmark under one condition. `facts` hold for every cell in it."""

    benchmark: str
    facts: Facts
    rows: tuple[Row, ...]
    title: str

    @property
    def records(self) -> list[Record]:
        """Every cell of the table."""
        return [record for row in self.rows for record in row.records]

    @property
    def done(self) -> list[Record]:
        """The cells that have results."""
        return [record for row in self.rows for record in row.done]

    @property
    def ranked(self) -> list[Row]:
        """The rows that are compared with each other, best first."""
        return [row for row in self.rows if row.competes]

    @property
    def stem(self) -> str:
        """A file name of its own, the same whatever else is in the report."""
        content = json.dumps([self.benchmark, self.facts], sort_keys=True)
        return f"{slug(self.benchmark)}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def group(records: Sequence[Record]) -> list[Group]:
    """Groups by benchmark and condition, rows by accuracy after those that are references only; independent
    of the order of the records.

    Raises:
        UsageError: if two records are of the same cell.
    """
    groups = [
        Group(benchmark, facts, _rows(members), benchmark)
        for benchmark in sorted({record.benchmark for record in records})
        for facts, members in _by_condition([r for r in records if r.benchmark == benchmark])
    ]
    return [titled for benchmark in _names(groups) for titled in _titled(groups, benchmark)]


def _names(groups: Sequence[Group]) -> list[str]:
    return sorted({group.benchmark for group in groups})


def _titled(groups: Sequence[Group], benchmark: str) -> Iterator[Group]:
    """A benchmark with several conditions names in each title what differs."""
    members = [group for group in groups if group.benchmark == benchmark]
    for member, difference in zip(members, distinguish([m.facts for m in members]), strict=True):
        yield replace(member, title=f"{benchmark} ({difference})" if difference else benchmark)


def distinguish(several: Sequence[Facts]) -> list[str]:
    """For each, its facts that are not the same in all: "scale quick, epochs 3"; empty if all are equal."""
    names = in_order({name: None for facts in several for name in facts})
    differing = [name for name, _ in names if len({facts.get(name) for facts in several}) > 1]
    return [", ".join(phrase(name, facts.get(name)) for name in differing) for facts in several]


def in_order(facts: Facts) -> list[tuple[str, str | None]]:
    """The facts in the order of reading."""
    first = [name for name in _FIRST if name in facts]
    rest = sorted(facts.keys() - {*_FIRST, *HASHES})
    return [(name, facts[name]) for name in (*first, *rest, *HASHES) if name in facts]


def phrase(name: str, value: str | None) -> str:
    """A fact in words; hashes are shortened."""
    if value is None:
        return f"{name} unknown"
    return f"{name} {value[:12] if name in HASHES else value}"


def _by_condition(records: Sequence[Record]) -> list[tuple[Facts, list[Record]]]:
    """An unfinished cell that never saw its data or weights joins the first table it does not contradict."""
    found: dict[str, tuple[Facts, list[Record]]] = {}
    late = []
    for record in records:
        facts = _condition(record)
        if not record.done and None in facts.values():
            late.append((facts, record))
        else:
            found.setdefault(_key(facts), (facts, []))[1].append(record)
    for facts, record in sorted(late, key=lambda item: _key(item[0])):
        home = next((key for key in sorted(found) if _fits(facts, found[key][0])), _key(facts))
        found.setdefault(home, (facts, []))[1].append(record)
    return [found[key] for key in sorted(found)]


def _key(facts: Facts) -> str:
    return json.dumps(facts, sort_keys=True)


def _fits(partial: Facts, whole: Facts) -> bool:
    known = {name: value for name, value in partial.items() if value is not None}
    return partial.keys() == whole.keys() and all(whole[name] == value for name, value in known.items())


def _condition(record: Record) -> Facts:
    """What must be equal in a table. Where each method has its paper's recipe, that is the row's."""
    shared = {name: value for name, value in record.config.items() if name not in _NOT_SHARED}
    facts: Facts = {"device": record.manifest.device, "tasks": str(record.tasks)}
    facts |= _flat({name: value for name, value in shared.items() if name not in ("benchmark", "protocol")})
    facts |= {f"benchmark {name}": value for name, value in _flat(_part(shared, "benchmark")).items()}
    facts |= {"data sha256": record.manifest.data_sha256, "split sha256": record.manifest.split_sha256}
    for name in ("benchmark name", "benchmark label"):
        facts.pop(name, None)
    return facts | ({"protocol": "paper"} if is_paper(record) else _recipe(record))


def _recipe(record: Record) -> Facts:
    protocol = _flat(_part(record.config, "protocol"))
    facts: Facts = {"backbone": record.manifest.backbone, "precision": record.manifest.precision}
    facts |= {"protocol" if name == "name" else name: value for name, value in protocol.items()}
    return facts | {"backbone sha256": record.manifest.backbone_sha256}


def is_paper(record: Record) -> bool:
    """Whether each method was run by its own published recipe."""
    return _part(record.config, "protocol").get("name") == "paper"


def method_facts(record: Record) -> Facts:
    """The method's resolved hyper-parameters, and its recipe where it has one of its own."""
    options = {k: v for k, v in _part(record.config, "method").items() if k not in ("name", "label")}
    plain: Facts = {}
    for name, value in options.items():
        plain |= _flat(value if isinstance(value, Mapping) else {name: value})
    return plain | (_recipe(record) if is_paper(record) else {})


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name, {})
    return part if isinstance(part, Mapping) else {name: part}


def _flat(tree: Mapping[str, Any]) -> Facts:
    flat: Facts = {}
    for name, value in tree.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            flat |= {f"{words} {inner}": text for inner, text in _flat(value).items()}
        else:
            flat[words] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _rows(records: Sequence[Record]) -> tuple[Row, ...]:
    """References first, then the best; a method without a finished cell comes last."""
    alike: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        alike.setdefault((record.method, _key(method_facts(record))), []).append(record)
    rows = [
        _row(method, difference, alike[key])
        for method in sorted({method for method, _ in alike})
        for keys in [sorted(key for key in alike if key[0] == method)]
        for key, difference in zip(
            keys, distinguish([method_facts(alike[key][0]) for key in keys]), strict=True
        )
    ]
    return tuple(sorted(rows, key=_rank))


def _row(method: str, difference: str, records: Sequence[Record]) -> Row:
    ordered = tuple(sorted(records, key=lambda record: record.seed))
    seeds = [record.seed for record in ordered]
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise UsageError(
            f"two records are of the same cell: {method} on {ordered[0].benchmark}, seed {twice}; "
            "report on a folder that holds each cell once"
        )
    return Row(f"{method} ({difference})" if difference else method, ordered)


def _rank(row: Row) -> tuple[bool, float, str]:
    found = estimate(row.metric("accuracy"))
    return (not row.last_only, -found.mean if found else 1.0, row.method)
