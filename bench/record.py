"""The record of a cell: its schema, its atomic write, its validated read.

Times are in seconds, memory in bytes, accuracies are fractions; null means "not measured" or "not
defined". A record that says "done" carries results, and no other record carries any.

A record keeps what was observed: counts, samples, costs. What follows from them by a formula is written
under `derived`, for people, and is computed again from the counts and samples when a record is read; so a
formula can be corrected, and a metric added, without touching a stored record. What is written is of schema
6; schemas 4 and 5 are read as well (`bench.upgrade`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, TypeGuard

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from bench import upgrade
from bench.costs import Cost, Latency, UtcTime
from bench.metrics import Matrix, accuracy_matrix, compute_all, metrics_of
from bench.model import FrozenModel, Scenario
from bench.predictions import PredictionsFile
from bench.storage import write_atomic
from methods.errors import UsageError, describe_validation, one_line, quote
from methods.hyper import unfit

SCHEMA: Final = 6
RECORD_NAME = "record.json"
DERIVED = "derived"
DIGITS = 19  # of an integer: 64 bits

Status = Literal["done", "failed", "oom", "diverged", "interrupted", "skipped"]


class RecordError(UsageError):
    """A record that cannot be used. The message names the file, what is wrong with it, and what to do."""


def _form(value: Any) -> str:
    """Which member of `DiagnosticValue` is meant, by its outermost type, so that an error names one only."""
    if not isinstance(value, list | tuple):
        return "number"
    return "table" if value and isinstance(value[0], list | tuple) else "list"


def _rectangular(table: list[list[float]]) -> list[list[float]]:
    lengths = sorted({len(line) for line in table})
    if len(lengths) > 1:
        raise ValueError(f"the lines of the table have different lengths: {', '.join(map(str, lengths))}")
    return table


_Numbers = Annotated[list[float], Field(min_length=1)]
_Table = Annotated[list[_Numbers], Field(min_length=1), AfterValidator(_rectangular)]

#: A number, a list with a number for each block of the ViT, a table, or null where it is not defined. A table
#: has a line for each experience whose test images were just evaluated, and a column for each of the things
#: that the method has for them, such as prompts; their numbers may grow with each experience.
DiagnosticValue = (
    Annotated[
        Annotated[float, Tag("number")] | Annotated[_Numbers, Tag("list")] | Annotated[_Table, Tag("table")],
        Discriminator(_form),
    ]
    | None
)


def is_list(value: DiagnosticValue) -> TypeGuard[list[float]]:
    """Whether it has a number for each block."""
    return _form(value) == "list"


def is_table(value: DiagnosticValue) -> TypeGuard[list[list[float]]]:
    """Whether it is a table."""
    return _form(value) == "table"


def kind(value: DiagnosticValue) -> str:
    """What the entries of a diagnostic have in common: "a number", "a list of 12", "a table"."""
    return f"a list of {len(value)}" if is_list(value) else f"a {_form(value)}"


class Diagnostic(FrozenModel):
    """What a method reports about itself: a sentence on what it means, and an entry per experience.

    All entries that are not null are numbers, or lists of one length, or tables. The table of the first
    experience has one line, that of the second at most two, and so on.
    """

    meaning: str = Field(min_length=1)
    values: list[DiagnosticValue]

    @field_validator("values")
    @classmethod
    def _of_one_kind(cls, values: list[DiagnosticValue]) -> list[DiagnosticValue]:
        kinds = {kind(value) for value in values if value is not None}
        if len(kinds) > 1:
            raise ValueError(f"the entries are of several kinds: {', '.join(sorted(kinds))}")
        return values

    @field_validator("values")
    @classmethod
    def _of_tested_experiences(cls, values: list[DiagnosticValue]) -> list[DiagnosticValue]:
        for learnt, value in enumerate(values, start=1):
            if is_table(value) and len(value) > learnt:
                raise ValueError(
                    f"the table after experience {learnt} has {len(value)} lines, one for each experience "
                    f"tested; legal: at most {learnt}"
                )
        return values


class Manifest(FrozenModel):
    """The conditions a cell was run under. Hashes are null in a cell that never saw its data.

    `workers` cells were run at a time by the `executor`; null: as many as it had room for. `resumed` has an
    entry for each time the cell was interrupted and resumed: the number of experiences already learnt.
    """

    versions: dict[str, str]
    device: str
    threads: int = Field(ge=1)
    precision: str
    backbone: str
    backbone_sha256: str | None
    data_sha256: str | None
    split_sha256: str | None
    commit: str | None
    dirty: bool | None
    started: UtcTime
    ended: UtcTime
    warnings: list[str] = Field([])
    command: str | None = None
    executor: str = "serial"
    workers: int | None = Field(1, ge=1)
    resumed: list[Annotated[int, Field(ge=1)]] = Field([])


class Record(FrozenModel):
    """Everything known about a cell that was run, or tried.

    Attributes:
        method, benchmark: the labels of the row, such as "duallora:gate=none".
        config: the resolved configuration.
        class_order: the data set's class numbers in the order learnt.
        class_names: the names of these classes, in the same order; null in a cell without results, and in
            older records.
        correct, counts: see `bench.metrics`; with numbers above the diagonal in a domain-incremental stream
            only, whose classes are all known from the first task on.
        cost: see `bench.costs`, also for how to store another cost of each experience.
        predictions: the file with the predicted class of every test image; null in records of older schemas.
        diagnostics: the method's own findings by name; null where it has none.

    Raises:
        pydantic.ValidationError: if the parts contradict each other.
    """

    model_config = ConfigDict(validate_by_name=False, validate_by_alias=True)

    schema_version: Literal[6] = Field(alias="schema")
    status: Status
    reason: str | None = None
    method: str = Field(min_length=1)
    benchmark: str = Field(min_length=1)
    seed: int = Field(ge=0)
    tasks: int = Field(ge=1)
    scenario: Scenario = "class-incremental"
    config: dict[str, JsonValue]
    class_order: list[int] | None = None
    class_names: list[str] | None = None
    correct: list[list[int | None]] | None = None
    counts: list[int] | None = None
    predictions: PredictionsFile | None = None
    diagnostics: dict[str, Diagnostic] | None = None
    cost: Cost | None = None
    manifest: Manifest

    @model_validator(mode="before")
    @classmethod
    def _without_derived(cls, content: Any) -> Any:
        """Drop what follows by a formula: it is computed again."""
        if not isinstance(content, dict):
            return content
        return {name: value for name, value in content.items() if name != DERIVED}

    @property
    def accuracy_matrix(self) -> Matrix | None:
        """`bench.metrics.accuracy_matrix` of the counts; None without results."""
        if self.correct is None or self.counts is None:
            return None
        return accuracy_matrix(self.correct, self.counts)

    @property
    def metrics(self) -> dict[str, float | None] | None:
        """Every metric that the scenario has, by name; None without results."""
        if self.correct is None or self.counts is None:
            return None
        return compute_all(self.correct, self.counts, metrics_of(self.scenario))

    @field_validator("config", mode="before")
    @classmethod
    def _config_can_be_written(cls, config: Any) -> Any:
        if problem := unfit(config):
            raise ValueError(problem)
        return config

    @property
    def domains(self) -> list[str] | None:
        """The names of the domains in the order learnt; None in a class-incremental stream."""
        domains = self.config.get("domains")
        return [str(name) for name in domains] if isinstance(domains, list) else None

    @property
    def done(self) -> bool:
        """Whether it holds results."""
        return self.status == "done"

    @model_validator(mode="after")
    def _status_and_reason(self) -> Record:
        if self.done and self.reason is not None:
            raise ValueError("status is done, but a reason is given")
        if not self.done and not (self.reason or "").strip():
            raise ValueError(f"status is {self.status}, but there is no reason")
        return self

    @model_validator(mode="after")
    def _no_result_unless_done(self) -> Record:
        results = ("correct", "counts", "predictions", "diagnostics")
        present = [name for name in results if getattr(self, name) is not None]
        if not self.done and present:
            raise ValueError(f"status is {self.status}, but there are results: {', '.join(present)}")
        required = ("correct", "counts", "class_order")
        absent = [name for name in required if getattr(self, name) is None]
        if self.done and absent:
            raise ValueError(f"status is done, but {', '.join(absent)} is null")
        return self

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Record:
        order = self.class_order or []
        if len(set(order)) != len(order):
            raise ValueError("class_order names a class twice")
        return self

    @model_validator(mode="after")
    def _every_class_has_a_name(self) -> Record:
        names, order = self.class_names, self.class_order or []
        if names is not None and len(names) != len(order):
            raise ValueError(
                f"class_names has {len(names)} names for the {len(order)} classes of class_order"
            )
        return self

    @model_validator(mode="after")
    def _cost_has_an_entry_per_experience(self) -> Record:
        entries = len(self.cost.experiences) if self.cost else 0
        if entries not in (0, self.tasks) if self.done else entries > self.tasks:
            raise ValueError(f"cost: experiences has {entries} entries for {self.tasks} tasks")
        return self

    @model_validator(mode="after")
    def _diagnostics_have_an_entry_per_experience(self) -> Record:
        for name, diagnostic in (self.diagnostics or {}).items():
            if len(diagnostic.values) != self.tasks:
                raise ValueError(
                    f"diagnostics: {name} has {len(diagnostic.values)} entries for {self.tasks} tasks"
                )
        return self

    @model_validator(mode="after")
    def _counts_make_sense(self) -> Record:
        if self.correct is not None and self.counts is not None:
            _check_counts(self.correct, self.counts, self.tasks)
            if self.scenario == "class-incremental":
                _check_nothing_unseen(self.correct, self.tasks)
        return self


def _check_counts(correct: list[list[int | None]], counts: list[int], tasks: int) -> None:
    """A column for each task or, where one test set is that of all tasks, a single one."""
    columns = len(counts)
    if columns not in (1, tasks) or len(correct) != tasks or any(len(row) != columns for row in correct):
        raise ValueError(
            f"counts must have {tasks} entries (or 1, of a test set for all tasks), and correct {tasks} rows "
            "of as many"
        )
    if min(counts) < 1:
        raise ValueError("counts: every task needs at least one test image")
    for row in correct:
        for hits, count in zip(row, counts, strict=True):
            if hits is not None and not 0 <= hits <= count:
                raise ValueError(f"correct has {hits} of {count} test images")


def _check_nothing_unseen(correct: list[list[int | None]], tasks: int) -> None:
    if any(len(row) != tasks for row in correct):
        raise ValueError(f"in a class-incremental stream correct has {tasks} entries in each row")
    if any(value is not None for i, row in enumerate(correct) for value in row[i + 1 :]):
        raise ValueError("correct has a number above the diagonal: a task evaluated before it was learnt")


def derived(record: Record) -> dict[str, Any]:
    """What follows from a record by formulas, for people; times in seconds, throughput in images a second."""
    return {
        "accuracy_matrix": record.accuracy_matrix,
        "metrics": record.metrics,
        "latency": [_latency_summary(latency) for latency in (record.cost and record.cost.latency) or ()],
        "throughput": record.cost.throughput if record.cost else None,
    }


def _latency_summary(latency: Latency) -> dict[str, Any]:
    model, plain = latency.model, latency.plain
    return {
        "experiences": latency.experiences,
        "batch": latency.batch,
        "ratio": latency.ratio,
        "model": {"median": model.median, "p95": model.p95, "p99": model.p99, "n": model.n},
        "plain": {"median": plain.median, "p95": plain.p95, "p99": plain.p99, "n": plain.n},
    }


def to_json(record: Record) -> str:
    """The text of record.json: equal records give equal bytes."""
    plain = record.model_dump(mode="json", by_alias=True) | {DERIVED: derived(record)}
    return json.dumps({key: _sorted(plain[key]) for key in plain}, indent=2, allow_nan=False) + "\n"


def _sorted(value: Any) -> Any:
    """Nested dictionaries in the order of their keys; the top level keeps the schema's."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def write(record: Record, folder: Path) -> Path:
    """Write `folder`/record.json so that at any moment it is the old one, the new one, or absent, whole.

    Returns:
        The path of the record.

    Raises:
        StorageError: if it cannot be written; an older record is then untouched.
    """
    path = folder / RECORD_NAME
    write_atomic(path, to_json(record).encode())
    return path


def digest(path: Path) -> str | None:
    """Hash of a record file, to detect changes; None where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def read(path: Path) -> Record:
    """Read and validate one record.

    Raises:
        RecordError: if the file is missing, cut short, of another schema, or contradicts itself.
    """
    content = _content(path)
    schema = content.get("schema")
    try:
        content = upgrade.to_current(content)
        return Record.model_validate(content, strict=True)
    except upgrade.UnknownSchemaError:
        oldest = min(upgrade.OLDER)
        _refuse(path, f"has schema {quote(schema)}, and this version reads schemas {oldest} to {SCHEMA}")
    except ValidationError as error:
        _refuse(path, describe_validation(error))
    except ValueError as error:
        _refuse(path, str(error))


def read_readable(results: Path) -> tuple[list[Record], list[str]]:
    """The records of all cells of a results folder, by the name of the cell's folder, and a sentence on each
    one that cannot be used.

    Raises:
        UsageError: if the folder does not exist or cannot be read.
    """
    records, complaints = read_folders(results)
    return list(records.values()), complaints


def read_folders(results: Path) -> tuple[dict[Path, Record], list[str]]:
    """As `read_readable`, but with the folder of each record.

    Raises:
        UsageError: if the folder does not exist or cannot be read.
    """
    try:
        cells = sorted(path for path in results.iterdir() if path.is_dir())
    except OSError as error:
        raise UsageError(
            f"cannot read the results folder '{results}' ({error.strerror}); give the folder that "
            "`python -m bench run --results DIR` has filled"
        ) from None
    records, complaints = {}, []
    for cell in (cell for cell in cells if (cell / RECORD_NAME).exists()):
        try:
            records[cell] = read(cell / RECORD_NAME)
        except RecordError as error:
            complaints.append(str(error))
    return records, complaints


def read_all(results: Path) -> list[Record]:
    """The records of all cells of a results folder.

    Raises:
        UsageError: if the folder does not exist or cannot be read.
        RecordError: if one of the records cannot be used.
    """
    records, complaints = read_readable(results)
    if complaints:
        raise RecordError("; ".join(complaints))
    return records


def _content(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_each_key_once, parse_int=_integer)
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        _refuse(path, "is not UTF-8 text")
    except json.JSONDecodeError as error:
        _refuse(path, f"is not whole JSON (line {error.lineno}: {error.msg})")
    except RecursionError:
        _refuse(path, "is not a record: its lists are nested too deep")
    except ValueError as error:
        _refuse(path, str(error))
    if not isinstance(content, dict):
        _refuse(path, f"holds a {type(content).__name__}, not an object")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a duplicate key; otherwise JSON's reader would silently keep the last value only."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"has '{one_line(duplicate)}' twice in one object")
    return content


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"has an integer of {len(text)} digits; legal: at most {DIGITS}")
    return int(text)


def _refuse(path: Path, problem: str) -> NoReturn:
    raise RecordError(
        f"the record '{path}' {problem}; move its folder away, or run its cell again with --rerun failed"
    ) from None
