"""The papers' numbers beside ours, and what keeps them from being compared.

A published number is called comparable only if every condition that is known to move results is known on
both sides and is the same. What a source does not say is unknown, and unknown is never equal. The numbers
are in results/published/, a TOML file a source.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from bench.benchmarks.base import abbreviate
from bench.benchmarks.splits import class_order
from bench.metrics import METRICS, Metric
from bench.model import FrozenModel
from bench.record import Record
from methods.errors import UsageError, describe_validation, unknown
from reports.groups import Group, Row
from reports.stats import estimate
from reports.tables import Table, scaled, with_interval
from reports.text import DASH, number

#: Where the sources lie in the repository; an installed package has none.
FOLDER = Path(__file__).resolve().parents[1] / "results" / "published"

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}

Order = Literal["own order", "CODA-Prompt's rule", "CODA-Prompt's rule on its own numbering", "seed 1993"]


def _known_metric(name: str) -> str:
    if name not in BY_NAME:
        raise ValueError(str(unknown("metric", name, BY_NAME)))
    return name


class PublishedConditions(FrozenModel):
    """What a number was obtained under. What is absent is unknown."""

    implementation: str | None = Field(None, description='"the authors\' code", or whose code it was')
    backbone: str | None = Field(None, description="full timm tag, or as much of it as is known")
    image_size: int | None = Field(None, gt=0, description="pixels")
    split: str | None = Field(None, description="which images are tested on")
    class_order: Order | None = Field(None, description="of the classes, over the seeds")
    seeds: int | None = Field(None, ge=1, description="runs that the mean is over")
    spread: Literal["standard deviation"] | None = Field(None, description="what stands behind the ±")
    prompts_chosen_by: Literal["image", "batch"] | None = Field(None, description="at test, L2P, DualPrompt")
    epochs: int | None = Field(None, gt=0)
    batch_size: int | None = Field(None, gt=0)
    normalisation: Literal["backbone", "unit"] | None = None
    augmentation: Literal["none", "flip", "crop-flip", "small-crop-flip"] | None = None
    schedule: Literal["cosine", "coda", "constant"] | None = None
    head_init: Literal["zero", "default"] | None = None
    precision: Literal["fp32", "bf16"] | None = None
    options: dict[str, float | int | str] | None = Field(None, description="the method's, by our names")
    departs: tuple[str, ...] = Field((), description="what no run of this harness does as the source did")


class Number(FrozenModel):
    """One value, in percent or points; `form` says what it is where no metric here is the same."""

    metric: Annotated[str, AfterValidator(_known_metric)] | None = None
    form: str | None = None
    value: float = Field(ge=0, le=100)
    spread: float | None = Field(None, ge=0, le=100)


class Result(FrozenModel):
    """The numbers of one method on one benchmark: `method` is its name here, absent if it is not here."""

    method: str | None = None
    name: str = Field(min_length=1, description="as the source calls it")
    benchmark: str = Field(min_length=1)
    tasks: int | None = Field(None, ge=1)
    conditions: PublishedConditions = PublishedConditions()
    doubt: str | None = Field(None, description="why the value may belong to something else")
    numbers: tuple[Number, ...] = Field(min_length=1)


class PublishedSource(FrozenModel):
    """One file. Conditions: of all results, of those `on` a benchmark, `of` a method (its name), of one."""

    title: str = Field(min_length=1)
    label: str = Field(min_length=1, description="in tables")
    arxiv: str | None = None
    venue: str | None = None
    table: str | None = None
    provenance: Literal["primary", "reprinted", "machine extraction", "secondary notes"]
    remarks: str | None = None
    conditions: PublishedConditions = PublishedConditions()
    on: dict[str, PublishedConditions] = Field({})
    of: dict[str, PublishedConditions] = Field({})
    results: tuple[Result, ...] = Field(min_length=1)

    def conditions_of(self, result: Result) -> PublishedConditions:
        """What is known of a result: of each condition the nearest statement holds, the last of these."""
        on, of = self.on.get(result.benchmark), self.of.get(result.name)
        layers = [part for part in (self.conditions, on, of, result.conditions) if part is not None]
        known = {name: getattr(c, name) for c in layers for name in sorted(c.model_fields_set)}
        return PublishedConditions.model_validate(known)


@dataclass(frozen=True)
class Comparison:
    """A group's table, if there is anything to put in it; the reasons its cells refer to; sentences."""

    table: Table | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


# ---- the files ---------------------------------------------------------------------------------


@cache
def load(folder: Path = FOLDER) -> tuple[PublishedSource, ...]:
    """The sources of a folder, by file name; none if there is no such folder.

    Raises:
        UsageError: naming the file that is not TOML or not a source, and what is wrong with it.
    """
    return tuple(_read(path) for path in sorted(folder.glob("*.toml")))


def _read(path: Path) -> PublishedSource:
    try:
        return PublishedSource.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = describe_validation(error)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = str(error)
    raise UsageError(f"the published numbers '{path}' cannot be used: {problem}; correct the file")


# ---- the comparison ----------------------------------------------------------------------------

DUALLORA = (
    "DualLoRA: no published number could be verified; the paper's text and code were not available to us."
)
HOW_TO_READ = (
    "Published values are as the sources give them: n is their number of runs, ± a standard deviation only "
    "where sd is written. Here ± is the 95 % t-interval over seeds. Comparable means that all conditions are "
    "known and equal; what a source does not say counts as different. Where nothing stands beside a value, "
    f"{DASH}, no metric here is defined as it is, or its definition is not known."
)


def compare(group: Group, sources: Sequence[PublishedSource]) -> Comparison | None:
    """The published numbers of the group's methods beside ours; None without sources."""
    if not sources:
        return None
    found = [entry for row in group.rows if row.done for entry in _entries(row, sources)]
    reasons = tuple(dict.fromkeys(entry.reason for entry in found if entry.reason))
    return Comparison(_table(found, reasons), reasons, tuple(_notes(group, sources, found)))


@dataclass(frozen=True)
class _Entry:
    """A line of the table without its mark; `reason` is empty where all conditions are equal."""

    cells: tuple[str, ...]
    reason: str


def _entries(row: Row, sources: Sequence[PublishedSource]) -> Iterator[_Entry]:
    record = row.done[0]
    wanted = (_name(record, "method"), _name(record, "benchmark"), record.tasks)
    for source in sources:
        for result in source.results:
            if (result.method, result.benchmark, result.tasks) == wanted:
                yield from _of_result(row, source, result)


def _of_result(row: Row, source: PublishedSource, result: Result) -> Iterator[_Entry]:
    conditions = source.conditions_of(result)
    reason = "; ".join(_differences(row, conditions, result.doubt))
    for published in result.numbers:
        metric = BY_NAME[published.metric].title if published.metric else published.form or "unknown"
        where = f"{source.label}: {result.name}"
        cells = (row.method, where, metric, _theirs(published, conditions), _ours(row, published))
        yield _Entry(cells, reason)


def _table(found: Sequence[_Entry], reasons: Sequence[str]) -> Table | None:
    columns = ("method", "source", "metric", "published", "here", "comparable")
    rows = tuple((*entry.cells, _mark(entry, reasons)) for entry in found)
    return Table(columns, rows, heads=3) if rows else None


def _mark(entry: _Entry, reasons: Sequence[str]) -> str:
    """A value that no metric here is the same as has nothing beside it to be compared with."""
    if entry.reason:
        return f"no ({reasons.index(entry.reason) + 1})"
    return "no" if entry.cells[-1] == DASH else "yes"


def _notes(group: Group, sources: Sequence[PublishedSource], found: Sequence[_Entry]) -> Iterator[str]:
    methods = {_name(record, "method") for record in group.records}
    benchmark, tasks = _name(group.records[0], "benchmark"), group.records[0].tasks
    there = [r for source in sources for r in source.results if r.benchmark == benchmark]
    theirs = sorted({r.tasks for r in there if r.method in methods and r.tasks})
    if found:
        yield HOW_TO_READ
    elif not there:
        yield f"No source in results/published has numbers on {benchmark}."
    elif not theirs:
        yield f"No source in results/published has numbers of these methods on {benchmark}."
    else:
        yield f"Published numbers of these methods are for {_listed(theirs)} tasks, not for {tasks}."
    if "duallora" in methods:
        yield DUALLORA


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _component(record: Record, part: str) -> Mapping[str, Any]:
    """The configuration of the method, the benchmark or the protocol."""
    found = record.config.get(part)
    return found if isinstance(found, Mapping) else {}


def _name(record: Record, part: str) -> str:
    """The method's or the benchmark's name without its options."""
    label: str = getattr(record, part)
    return str(_component(record, part).get("name", label.partition(":")[0]))


def _theirs(published: Number, conditions: PublishedConditions) -> str:
    spread = f" ± {number(published.spread, 2)}" if published.spread is not None else ""
    kind = ["sd"] if conditions.spread and published.spread is not None else []
    runs = [f"n = {conditions.seeds}"] if conditions.seeds is not None else []
    about = f" ({', '.join([*kind, *runs])})" if kind or runs else ""
    return f"{number(published.value, 2)}{spread}{about}"


def _ours(row: Row, published: Number) -> str:
    if published.metric is None:
        return DASH
    metric = published.metric
    return with_interval(estimate(scaled(record, metric) for record in row.done), 2)


# ---- what differs ------------------------------------------------------------------------------

#: (name, as published, here), None where it is not known.
Pair = tuple[str, str | None, str | None]

#: The fields of bench.spec.Protocol that must be equal; the backbone is one more.
PROTOCOL = (
    "image_size",
    "epochs",
    "batch_size",
    "normalisation",
    "augmentation",
    "schedule",
    "head_init",
    "precision",
)

FOLLOWED = "after the authors' code"

#: The methods that choose prompts, where choosing for a batch lets the task identity in.
CHOOSING = ("l2p", "dualprompt")


def _differences(row: Row, conditions: PublishedConditions, doubt: str | None) -> Iterator[str]:
    """What differs in words, published vs here, the unknown last; nothing if all is known and equal."""
    pairs = list(_pairs(row, conditions))
    yield from (f"{name} {theirs} vs {ours}" for name, theirs, ours in pairs if _differ(theirs, ours))
    yield from conditions.departs
    yield from [doubt] if doubt else []
    lacking = [name for name, theirs, ours in pairs if theirs is None or ours is None]
    if lacking:
        yield f"unknown: {abbreviate(lacking, 3)}"


def _differ(theirs: str | None, ours: str | None) -> bool:
    return theirs is not None and ours is not None and theirs != ours


def _pairs(row: Row, conditions: PublishedConditions) -> Iterator[Pair]:
    record = row.done[0]
    protocol = _component(record, "protocol")
    yield "scale", "full", _text(record.config.get("scale"))
    yield "evaluated on", "test", _text(record.config.get("eval_on"))
    yield "implementation", _implementation(conditions.implementation), FOLLOWED
    yield "backbone", _tag(conditions.backbone), _text(protocol.get("backbone"))
    yield "split", conditions.split, _split(record)
    yield "class order", conditions.class_order, _order(row, conditions.class_order)
    for name in PROTOCOL:
        yield name.replace("_", " "), _text(getattr(conditions, name)), _text(protocol.get(name))
    yield from _options(record, conditions)


def _options(record: Record, conditions: PublishedConditions) -> Iterator[Pair]:
    """The hyper-parameters that the source states, and those that were changed here."""
    options = _component(record, "method").get("options", {})
    if conditions.options is None:
        yield "hyper-parameters", None, None
    for name, value in sorted((conditions.options or {}).items()):
        yield name.replace("_", " "), _text(value), _text(options.get(name))
    changed = record.method.partition(":")[2]
    yield "options", "as published", changed or "as published"
    if _name(record, "method") in CHOOSING:
        here = "batch" if options.get("selection") == "batch" else "image"
        yield "prompts chosen by", conditions.prompts_chosen_by, here


def _text(value: Any) -> str | None:
    """Equal values give equal text, however they are written: 1 and 1.0."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return value if isinstance(value, str) or value is None else json.dumps(value)


def _implementation(theirs: str | None) -> str | None:
    """The methods here were written after the authors' code, so that counts as theirs."""
    return FOLLOWED if theirs == "the authors' code" else theirs


def _tag(backbone: str | None) -> str | None:
    """A tag that is not whole is shown, and is equal to none."""
    return backbone if backbone is None or "." in backbone else f"{backbone} (not the whole tag)"


def _split(record: Record) -> str:
    """Which images are tested on here."""
    if _component(record, "benchmark").get("options", {}).get("split"):
        return "by a list that was given"
    return "official" if _name(record, "benchmark") == "cifar100" else "this project's"


def _order(row: Row, theirs: str | None) -> str:
    """The source's rule if all our seeds follow it, else the one that they do follow."""
    followed = [name for name, rule in RULES.items() if all(map(rule, row.done))]
    return theirs if theirs in followed else (followed or ["another"])[-1]


def _as_numbered(record: Record) -> bool:
    order = record.class_order or []
    return order == list(range(len(order)))


def _by_codas_rule(record: Record) -> bool:
    order = tuple(record.class_order or ())
    return order == class_order(len(order), record.seed)


#: The rules that a record can be seen to follow. CODA-Prompt numbers ImageNet-R's classes in its own way.
RULES = {"own order": _as_numbered, "CODA-Prompt's rule": _by_codas_rule}
