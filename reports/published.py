"""Published numbers next to ours, and the reasons why they are not comparable.

A published number is called comparable only if every condition that is known to change results is known on
both sides, and is the same. A condition that a source does not state is unknown, and unknown is never equal.
The numbers are in results/published/, one TOML file per source.
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

from bench.benchmarks.splits import class_order
from bench.model import FrozenModel
from bench.record import Record
from methods.errors import UsageError, abbreviate, describe_validation, unknown
from reports.groups import Group, Row
from reports.stats import estimate
from reports.tables import Table, with_interval
from reports.text import DASH, number
from reports.values import METRIC_BY_NAME, metric_value

#: The folder of the sources in the repository; an installed package has none.
FOLDER = Path(__file__).resolve().parents[1] / "results" / "published"

Order = Literal["own order", "CODA-Prompt's rule", "CODA-Prompt's rule on its own numbering", "seed 1993"]


def _known_metric(name: str) -> str:
    if name not in METRIC_BY_NAME:
        raise ValueError(str(unknown("metric", name, METRIC_BY_NAME)))
    return name


class PublishedConditions(FrozenModel):
    """The conditions under which a number was obtained. An absent condition is unknown."""

    implementation: str | None = Field(None, description='"the authors\' code", or whose code it was')
    backbone: str | None = Field(None, description="full timm tag, or as much of it as is known")
    image_size: int | None = Field(None, gt=0, description="pixels")
    split: str | None = Field(None, description="which images are tested on")
    class_order: Order | None = Field(None, description="of the classes, over the seeds")
    seeds: int | None = Field(None, ge=1, description="number of runs of the mean")
    spread: Literal["standard deviation"] | None = Field(None, description="what the ± is")
    prompts_chosen_by: Literal["image", "batch"] | None = Field(None, description="at test, L2P, DualPrompt")
    epochs: int | None = Field(None, gt=0)
    batch_size: int | None = Field(None, gt=0)
    normalisation: Literal["backbone", "unit"] | None = None
    augmentation: Literal["none", "flip", "crop-flip", "small-crop-flip"] | None = None
    schedule: Literal["cosine", "coda", "constant"] | None = None
    head_init: Literal["zero", "default"] | None = None
    precision: Literal["fp32", "bf16"] | None = None
    options: dict[str, float | int | str] | None = Field(None, description="the method's, by our names")
    departs: tuple[str, ...] = Field((), description="what the source did and no run of this harness does")


class Number(FrozenModel):
    """One value, in percent or points; `form` describes it where no metric of this project is the same."""

    metric: Annotated[str, AfterValidator(_known_metric)] | None = None
    form: str | None = None
    value: float = Field(ge=0, le=100)
    spread: float | None = Field(None, ge=0, le=100)


class Result(FrozenModel):
    """The numbers of one method on one benchmark. `method` is its name in this project, if it has one."""

    method: str | None = None
    name: str = Field(min_length=1, description="the name in the source")
    benchmark: str = Field(min_length=1)
    tasks: int | None = Field(None, ge=1)
    conditions: PublishedConditions = PublishedConditions()
    doubt: str | None = Field(None, description="why the value may be of something else")
    numbers: tuple[Number, ...] = Field(min_length=1)


class PublishedSource(FrozenModel):
    """One file. It states conditions for all results, `on` a benchmark, `of` a method by name, or for one."""

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
        """The known conditions of a result; the most specific statement of each condition holds."""
        on, of = self.on.get(result.benchmark), self.of.get(result.name)
        layers = [part for part in (self.conditions, on, of, result.conditions) if part is not None]
        known = {name: getattr(c, name) for c in layers for name in sorted(c.model_fields_set)}
        return PublishedConditions.model_validate(known)


@dataclass(frozen=True)
class Comparison:
    """A group's table, None if it would be empty; the reasons that its cells number; sentences."""

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
OF_CLASSES = "The sources in results/published are about class-incremental streams only."
C_LORA = (
    "C-LoRA with a routing matrix (arXiv 2502.17920): no published number is known to us. Results called "
    "C-LoRA in other papers' tables are of another method (Smith et al., arXiv 2304.06027); they are not "
    "shown beside it."
)
#: What is said of a method wherever it is in a table, by name.
SAID_OF = {"duallora": DUALLORA, "c-lora": C_LORA}
HOW_TO_READ = (
    "Published values are as their sources state them: n is the number of runs, and ± is a standard "
    "deviation only where sd is written. Here, ± is the 95 % t-interval over seeds. Comparable means that "
    "all conditions are known and equal; a condition that the source does not state counts as different. "
    f"{DASH} in the column here: no metric of this project has the same definition, or it is not known."
)


def compare(group: Group, sources: Sequence[PublishedSource]) -> Comparison | None:
    """The published numbers of the group's methods next to ours; None without sources."""
    if not sources:
        return None
    if group.scenario != "class-incremental":
        return Comparison(None, (), (OF_CLASSES,))
    entries = [entry for row in group.rows if row.done for entry in _entries(row, sources)]
    reasons = tuple(dict.fromkeys(entry.reason for entry in entries if entry.reason))
    return Comparison(_table(entries, reasons), reasons, tuple(_notes(group, sources, entries)))


@dataclass(frozen=True)
class _Entry:
    """A row of the table without its last cell; `reason` is empty where all conditions are equal."""

    cells: tuple[str, ...]
    reason: str


def _entries(row: Row, sources: Sequence[PublishedSource]) -> Iterator[_Entry]:
    record = row.done[0]
    cell = (_name(record, "method"), _name(record, "benchmark"), record.tasks)
    for source in sources:
        for result in source.results:
            if (result.method, result.benchmark, result.tasks) == cell:
                yield from _of_result(row, source, result)


def _of_result(row: Row, source: PublishedSource, result: Result) -> Iterator[_Entry]:
    conditions = source.conditions_of(result)
    reason = "; ".join(_differences(row, conditions, result.doubt))
    for published in result.numbers:
        metric = METRIC_BY_NAME[published.metric].title if published.metric else published.form or "unknown"
        label = f"{source.label}: {result.name}"
        cells = (row.method, label, metric, _theirs(published, conditions), _ours(row, published))
        yield _Entry(cells, reason)


def _table(entries: Sequence[_Entry], reasons: Sequence[str]) -> Table | None:
    columns = ("method", "source", "metric", "published", "here", "comparable")
    rows = tuple((*entry.cells, _comparable(entry, reasons)) for entry in entries)
    return Table(columns, rows, heads=3) if rows else None


def _comparable(entry: _Entry, reasons: Sequence[str]) -> str:
    """Yes, or no with the number of the reason; also no where there is no value of ours to compare with."""
    if entry.reason:
        return f"no ({reasons.index(entry.reason) + 1})"
    return "no" if entry.cells[-1] == DASH else "yes"


def _notes(group: Group, sources: Sequence[PublishedSource], entries: Sequence[_Entry]) -> Iterator[str]:
    methods = {_name(record, "method") for record in group.records}
    benchmark, tasks = _name(group.records[0], "benchmark"), group.records[0].tasks
    results = [r for source in sources for r in source.results if r.benchmark == benchmark]
    published_tasks = sorted({r.tasks for r in results if r.method in methods and r.tasks})
    if entries:
        yield HOW_TO_READ
    elif not results:
        yield f"No source in results/published has numbers on {benchmark}."
    elif not published_tasks:
        yield f"No source in results/published has numbers of these methods on {benchmark}."
    else:
        listed = ", ".join(map(str, published_tasks))
        yield f"Published numbers of these methods are for {listed} tasks, not for {tasks}."
    yield from (said for name, said in SAID_OF.items() if name in methods)


def _component(record: Record, part: str) -> Mapping[str, Any]:
    """The configuration of the method, the benchmark or the protocol."""
    content = record.config.get(part)
    return content if isinstance(content, Mapping) else {}


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
    return with_interval(estimate(row.values(metric_value(published.metric))), 2)


# ---- differences in conditions -----------------------------------------------------------------

#: (name, published value, value here); a value is None where it is not known.
Pair = tuple[str, str | None, str | None]

#: Fields of bench.spec.Protocol that must be equal, in addition to the backbone.
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

#: The methods that choose prompts. Choosing once per batch lets the task identity leak in.
CHOOSING = ("l2p", "dualprompt")


def _differences(row: Row, conditions: PublishedConditions, doubt: str | None) -> Iterator[str]:
    """The differences in words, "published vs here", the unknown last; none if all is known and equal."""
    pairs = list(_pairs(row, conditions))
    yield from (f"{name} {theirs} vs {ours}" for name, theirs, ours in pairs if _differ(theirs, ours))
    yield from conditions.departs
    yield from [doubt] if doubt else []
    unstated = [name for name, theirs, ours in pairs if theirs is None or ours is None]
    if unstated:
        yield f"unknown: {abbreviate(unstated, 3)}"


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
    """The hyper-parameters that the source states, and those changed here."""
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
    """Equal values give equal text, such as 1 and 1.0."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return value if isinstance(value, str) or value is None else json.dumps(value)


def _implementation(theirs: str | None) -> str | None:
    """The methods here follow the authors' code, so the authors' code counts as the same implementation."""
    return FOLLOWED if theirs == "the authors' code" else theirs


def _tag(backbone: str | None) -> str | None:
    """A full timm tag as it is; part of a tag is marked, so that it equals no tag."""
    return backbone if backbone is None or "." in backbone else f"{backbone} (not the whole tag)"


def _split(record: Record) -> str:
    """Which images are tested on in this project."""
    if _component(record, "benchmark").get("options", {}).get("split"):
        return "by a list that was given"
    return "official" if _name(record, "benchmark") == "cifar100" else "this project's"


def _order(row: Row, theirs: str | None) -> str:
    """The source's rule if all our seeds follow it, else a rule that they do follow."""
    followed = [name for name, rule in RULES.items() if all(map(rule, row.done))]
    return theirs if theirs in followed else (followed or ["another"])[-1]


def _as_numbered(record: Record) -> bool:
    order = record.class_order or []
    return order == list(range(len(order)))


def _by_codas_rule(record: Record) -> bool:
    order = tuple(record.class_order or ())
    return order == class_order(len(order), record.seed)


#: The rules that can be recognised from a record. CODA-Prompt numbers ImageNet-R's classes in its own way.
RULES = {"own order": _as_numbered, "CODA-Prompt's rule": _by_codas_rule}
