"""Groups of records that are shown in one table: one benchmark, under the same conditions.

Groups are formed by content, not by name. Cells with the same resolved configuration of their method share a
row; cells that agree in everything else, but for the seed and what follows from it, share a table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.model import ADDED, Scenario
from bench.record import Record
from methods.errors import UsageError
from reports.ranking import Run
from reports.stats import estimate
from reports.text import slug
from reports.values import Value, final_accuracy

#: Name of a condition -> its value as text; None where a cell ended before the value was known.
Facts = dict[str, str | None]

#: Parts of a configuration that belong to one cell (its method, its seed) or are in the manifest as well.
_NOT_SHARED = frozenset(
    {
        "method",
        "seed",
        "class_order",
        "domains",
        "task_sizes",
        "split_sha256",
        "data_sha256",
        "backbone_sha256",
        "places",
    }
)

#: Names that other methods have, too, or that differ from them by a hyphen -> the paper that is meant.
MISLEADING = {"c-lora": "arXiv 2502.17920", "clora": "arXiv 2512.24603", "sora": "arXiv 2311.11696"}

#: The conditions that are listed first; the others follow by name, and the hashes last.
_FIRST = ("protocol", "scale", "eval on", "tasks", "backbone", "image size", "epochs", "batch size")

#: How the warning begins that a backbone was pre-trained on the benchmark's images.
CONTAMINATED = "contaminated"

#: How the warning begins that a method was told at test what it is to find out.
UPPER_BOUND = "upper bound"

HASHES = ("backbone sha256", "data sha256", "split sha256")


@dataclass(frozen=True)
class Row:
    """The cells of one method under one condition, by seed."""

    method: str
    records: tuple[Record, ...]

    @cached_property
    def done(self) -> list[Record]:
        """The finished cells; they have results."""
        return [record for record in self.records if record.done]

    @property
    def unfinished(self) -> list[Record]:
        """The cells that failed, were interrupted or were skipped."""
        return [record for record in self.records if not record.done]

    @cached_property
    def is_reference(self) -> bool:
        """Whether it was evaluated after the last task only, as a method that trains on all tasks at once."""
        return bool(self.done) and all(map(_evaluated_once, self.done))

    @property
    def is_ranked(self) -> bool:
        """Whether it is compared with other rows: it has results, learnt the tasks one by one, and was told
        nothing at test.
        """
        return bool(self.done) and not self.is_reference and not self.is_upper_bound

    @property
    def is_upper_bound(self) -> bool:
        """Whether it was told at test what a method is to find out."""
        return self._is_warned(UPPER_BOUND)

    @property
    def contaminated(self) -> bool:
        """Whether the backbone of any of its cells was pre-trained on the benchmark's images."""
        return self._is_warned(CONTAMINATED)

    def _is_warned(self, beginning: str) -> bool:
        return any(text.startswith(beginning) for r in self.records for text in r.manifest.warnings)

    def values(self, value: Value) -> list[float | None]:
        """The value of each finished cell; computed once, because several tables show the same value."""
        if value not in self._computed:
            self._computed[value] = [value(record) for record in self.done]
        return self._computed[value]

    @cached_property
    def _computed(self) -> dict[Value, list[float | None]]:
        return {}

    def by_run(self, value: Value) -> dict[Run, float]:
        """The value of each finished cell by its run; empty if one of them does not have it."""
        known = {
            run: number
            for run, number in zip(self._runs, self.values(value), strict=True)
            if number is not None
        }
        return known if len(known) == len(self._runs) else {}

    @cached_property
    def _runs(self) -> list[Run]:
        return [(record.seed, order_of(record)) for record in self.done]

    def metric(self, name: str) -> list[float | None]:
        """A metric of each finished cell, as a fraction."""
        return [record.metrics[name] for record in self.done if record.metrics]


@dataclass(frozen=True)
class Group:
    """One table: a benchmark under one set of conditions. `facts` are the conditions of every cell in it."""

    benchmark: str
    facts: Facts
    rows: tuple[Row, ...]
    title: str

    @property
    def records(self) -> list[Record]:
        """All cells of the table."""
        return [record for row in self.rows for record in row.records]

    @property
    def done(self) -> list[Record]:
        """All finished cells of the table."""
        return [record for row in self.rows for record in row.done]

    @property
    def scenario(self) -> Scenario:
        """The scenario of all its cells."""
        return self.records[0].scenario

    @property
    def ranked(self) -> list[Row]:
        """The rows that are compared with each other, best first."""
        return [row for row in self.rows if row.is_ranked]

    @property
    def stem(self) -> str:
        """A unique start for file names, which does not depend on what else is in the report."""
        content = json.dumps([self.benchmark, self.facts], sort_keys=True)
        return f"{slug(self.benchmark)}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def order_of(record: Record) -> tuple[str, ...]:
    """What the record learnt, in order: its domains or, in a class-incremental stream, its class numbers."""
    return tuple(record.domains or map(str, record.class_order or ()))


def _evaluated_once(record: Record) -> bool:
    """Whether it has several tasks, and was evaluated after the last one only."""
    before = (record.correct or [])[:-1]
    return bool(before) and all(value is None for row in before for value in row)


def group(records: Sequence[Record]) -> list[Group]:
    """Group records by benchmark and conditions: in each group the references, then the others, best first.

    The result does not depend on the order of the records.

    Raises:
        UsageError: if two records are of the same cell.
    """
    groups = [
        Group(benchmark, facts, _rows(members), benchmark)
        for benchmark, of_benchmark in sorted(_by_benchmark(records).items())
        for facts, members in _by_condition(of_benchmark)
    ]
    return [titled for name in _names(groups) for titled in _titled(groups, *name)]


# ---- several records of one cell ---------------------------------------------------------------


@dataclass(frozen=True)
class Distinct:
    """The records of a results folder, at most one of each cell.

    Attributes:
        copies: sentences on folders that hold the same cell.
        superseded: sentences on attempts at a cell that was run later, when its data or weights were there.
    """

    records: tuple[Record, ...]
    copies: tuple[str, ...]
    superseded: tuple[str, ...]


def distinct(records: Mapping[Path, Record]) -> Distinct:
    """Each cell once: of equal records the first, and none of several that contradict each other.

    Args:
        records: by the folder of the cell.
    """
    kept: list[Record] = []
    copies: list[str] = []
    superseded: list[str] = []
    for folders in _by_cell(records):
        current = _current(folders, records)
        superseded += [
            f"'{folder}' is an earlier attempt at the cell in '{current[0]}'"
            for folder in folders
            if folder not in current
        ]
        if _are_equal(current, records):
            kept.append(records[current[0]])
        if len(current) > 1:
            copies.append(_describe_copies(current, records))
    return Distinct(tuple(kept), tuple(copies), tuple(superseded))


def _by_cell(records: Mapping[Path, Record]) -> list[list[Path]]:
    """The folders of each cell."""
    folder_of = {id(record): folder for folder, record in records.items()}
    cells: dict[tuple[str, str, str, str, int], list[Path]] = {}
    for benchmark, of_benchmark in _by_benchmark(list(records.values())).items():
        for facts, members in _by_condition(of_benchmark):
            for record in members:
                row = (record.method, _key(method_facts(record)))
                cell = (benchmark, _key(facts), *row, record.seed)
                cells.setdefault(cell, []).append(folder_of[id(record)])
    return [sorted(folders) for folders in cells.values()]


def _current(folders: Sequence[Path], records: Mapping[Path, Record]) -> list[Path]:
    """Those that know their data and weights; of a cell that never saw them, the last attempt."""
    whole = [folder for folder in folders if not _is_incomplete(records[folder])]
    return whole or [max(folders, key=lambda folder: records[folder].manifest.ended)]


def _are_equal(folders: Sequence[Path], records: Mapping[Path, Record]) -> bool:
    return all(records[folder] == records[folders[0]] for folder in folders)


def _describe_copies(folders: Sequence[Path], records: Mapping[Path, Record]) -> str:
    record, names = records[folders[0]], [f"'{folder}'" for folder in folders]
    cell = f"{record.method} on {record.benchmark}, seed {record.seed}"
    if _are_equal(folders, records):
        return (
            f"{' and '.join(names[1:])}, with the same record as {names[0]} ({cell}); delete what is a copy"
        )
    return (
        f"{' and '.join(names)}, whose records are of the same cell ({cell}) and differ; "
        "delete those that do not hold"
    )


# ---- tables ------------------------------------------------------------------------------------


def _by_benchmark(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the label of their benchmark; the same images at several places have one: the first."""
    labels: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.benchmark):
        labels.setdefault(_images_of(record), record.benchmark)
    by_label: dict[str, list[Record]] = {}
    for record in records:
        by_label.setdefault(labels[_images_of(record)], []).append(record)
    return by_label


def _images_of(record: Record) -> str:
    """What the label of a record's benchmark stands for: where files have a place, what they hold."""
    data = record.manifest.data_sha256
    if data is None or not record.config.get("places"):
        return record.benchmark
    name = _part(record.config, "benchmark").get("name")
    return json.dumps([name, _options_of_benchmark(record), data], sort_keys=True)


def _options_of_benchmark(record: Record) -> Facts:
    """The options of the benchmark, without those that say where its files are."""
    places = record.config.get("places") or ()
    assert isinstance(places, list | tuple)
    options = _part(_part(record.config, "benchmark"), "options")
    return _flat({name: value for name, value in options.items() if name not in places})


def _names(groups: Sequence[Group]) -> list[tuple[str, Scenario]]:
    return sorted({(group.benchmark, group.scenario) for group in groups})


def _titled(groups: Sequence[Group], benchmark: str, scenario: Scenario) -> Iterator[Group]:
    """The groups of a benchmark in a scenario; where there are several, the titles say what differs."""
    members = [group for group in groups if (group.benchmark, group.scenario) == (benchmark, scenario)]
    for member, difference in zip(members, distinguish([m.facts for m in members]), strict=True):
        title = f"{benchmark}, {scenario}"
        yield replace(member, title=f"{title} ({difference})" if difference else title)


def distinguish(several: Sequence[Facts]) -> list[str]:
    """For each, the facts in which it differs from the others: "scale quick, epochs 3"; "" if none do."""
    names = in_order({name: None for facts in several for name in facts})
    whole = [_flat(ADDED) | facts for facts in several]
    differing = [name for name, _ in names if len({facts.get(name) for facts in whole}) > 1]
    return [", ".join(phrase(name, facts.get(name)) for name in differing) for facts in whole]


def in_order(facts: Facts) -> list[tuple[str, str | None]]:
    """The facts, the most important first, the hashes last."""
    first = [name for name in _FIRST if name in facts]
    rest = sorted(facts.keys() - {*_FIRST, *HASHES})
    return [(name, facts[name]) for name in (*first, *rest, *HASHES) if name in facts]


def phrase(name: str, value: str | None) -> str:
    """A fact in words, such as "image size 64"; hashes are shortened."""
    if value is None:
        return f"{name} unknown"
    return f"{name} {value[:12] if name in HASHES else value}"


def _by_condition(records: Sequence[Record]) -> list[tuple[Facts, list[Record]]]:
    """Records by their facts. A cell that ended before its data or weights were read joins the first table
    that it does not contradict."""
    tables: dict[str, tuple[Facts, list[Record]]] = {}
    incomplete = []
    for record in records:
        facts = _condition(record)
        if _is_incomplete(record):
            incomplete.append((facts, record))
        else:
            tables.setdefault(_key(facts), (facts, []))[1].append(record)
    for facts, record in sorted(incomplete, key=lambda item: _key(item[0])):
        home = next((key for key in sorted(tables) if _fits(facts, tables[key][0])), _key(facts))
        tables.setdefault(home, (facts, []))[1].append(record)
    return [tables[key] for key in sorted(tables)]


def _is_incomplete(record: Record) -> bool:
    """Whether its cell ended before its data or its weights were read."""
    return not record.done and None in _condition(record).values()


def _key(facts: Facts) -> str:
    return json.dumps(facts, sort_keys=True)


def _fits(partial: Facts, whole: Facts) -> bool:
    known = {name: value for name, value in partial.items() if value is not None}
    return partial.keys() == whole.keys() and all(whole[name] == value for name, value in known.items())


def _condition(record: Record) -> Facts:
    """The conditions that all cells of a table share; a paper's recipe belongs to the row instead."""
    shared = {name: value for name, value in record.config.items() if name not in _NOT_SHARED}
    facts: Facts = {"device": record.manifest.device, "tasks": str(record.tasks)}
    facts |= _flat({name: value for name, value in shared.items() if name not in ("benchmark", "protocol")})
    facts |= {f"benchmark {name}": value for name, value in _facts_of_benchmark(record).items()}
    facts |= {"data sha256": record.manifest.data_sha256, "split sha256": record.manifest.split_sha256}
    for name in ("benchmark name", "benchmark label"):
        facts.pop(name, None)
    return facts | ({"protocol": "paper"} if is_paper(record) else _recipe(record))


def _facts_of_benchmark(record: Record) -> Facts:
    benchmark = {name: v for name, v in _part(record.config, "benchmark").items() if name != "options"}
    return _flat(benchmark) | {f"options {k}": v for k, v in _options_of_benchmark(record).items()}


def _recipe(record: Record) -> Facts:
    protocol = _flat(_part(record.config, "protocol"))
    facts: Facts = {"backbone": record.manifest.backbone, "precision": record.manifest.precision}
    facts |= {"protocol" if name == "name" else name: value for name, value in protocol.items()}
    return facts | {"backbone sha256": record.manifest.backbone_sha256}


def is_paper(record: Record) -> bool:
    """Whether the method was run with its published recipe."""
    return _part(record.config, "protocol").get("name") == "paper"


def method_facts(record: Record) -> Facts:
    """The method's resolved hyper-parameters and, under the papers' recipes, its recipe."""
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
    """References first, then the others by accuracy; methods without a finished cell come last."""
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
    name = told_apart(method)
    return Row(f"{name} ({difference})" if difference else name, ordered)


def told_apart(label: str) -> str:
    """The label of a method, with the number of its paper where the name alone could mislead."""
    papers = [MISLEADING[word] for word in re.split(r"[:+=]", label) if word in MISLEADING]
    return f"{label} ({', '.join(papers)})" if papers else label


def _rank(row: Row) -> tuple[bool, float, str]:
    accuracy = estimate(row.values(final_accuracy))
    return (not row.is_reference, -accuracy.mean if accuracy else 1.0, row.method)
