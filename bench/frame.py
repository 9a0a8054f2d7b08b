"""Records as tidy pandas frames, for notebooks and for the report's CSV file.

To add a column to the frame of cells, add one entry to `cell_columns`. A new metric, and a new cost of an
experience, have their columns without a change here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from bench import predictions
from bench.costs import Cost, ExperienceCost, Peak
from bench.metrics import METRICS, Metric
from bench.predictions import PredictionsError
from bench.record import Record, read_folders
from methods.errors import unknown

What = Literal["cells", "tasks", "experiences", "latency", "predictions"]

#: Types of columns. `INTEGER` and `FLAG` have a value for what is missing; floats have NaN, texts None.
TEXT, FLOAT, INTEGER, FLAG = "object", "float64", "Int64", "boolean"
#: An integer that is never missing.
COUNT = "int64"

#: The columns that every frame begins with; together they identify a cell.
KEYS = {"cell": TEXT, "method": TEXT, "benchmark": TEXT, "scenario": TEXT, "seed": COUNT}

#: The columns of fields of `ExperienceCost` whose names do not end in their unit.
UNIT_NAMES = {
    "flops": "prediction_flops_per_image",
    "trainable": "parameters_trainable_elements",
    "stored": "parameters_stored_elements",
    "deployed": "parameters_deployed_elements",
}


def load(results: Path | str, what: What = "cells") -> pd.DataFrame:
    """The records of a results folder as a tidy frame.

    Every frame begins with the columns `cell` (the name of the cell's folder), `method`, `benchmark`,
    `scenario` (results of two scenarios do not belong together) and `seed`. Tasks are counted from 1. Names
    of columns end in the unit. A missing value means "not measured" or "not defined".

    - "cells": one row per cell, unfinished ones included. Columns: `status`, `reason`; every metric of
      `bench.metrics`, such as `accuracy_fraction`; costs in total, such as `train_total_seconds`, and after
      the last task, such as `stored_bytes`; latency by batch size, such as
      `latency_batch_1_ratio_to_plain_vit`; peak memory; conditions, such as `backbone` and `device`; settings
      by owner, such as `method.rank`, `benchmark.split` and `protocol.epochs`.
    - "tasks": one row per cell, `after_task` (the task just learnt) and `test_task` (the task that the test
      images belong to; 1 where one test set is that of all tasks). Columns: `test_domain` (its name, in a
      domain-incremental stream), `correct`, `count`, `accuracy_fraction`.
    - "experiences": one row per cell and `task`. Columns: what training cost, and the sizes after it.
    - "latency": one row per timed call. Columns: `after_task`, `batch` (images per call), `round`, `model`
      ("method", or "plain ViT" for the timm ViT without a method, timed in the same rounds), `seconds`.
    - "predictions": one row per cell, `after_task` and test image. Columns: `row` (of the image in its data
      set), `true` and `predicted` (classes, as the data set numbers them).

    Only "cells" has unfinished cells. The frames of tasks and of predictions have no row for what was not
    evaluated. A record or a predictions file that is missing or damaged is left out, with a warning.

    Args:
        results: the folder that `python -m bench run --results` has filled.
        what: which frame.

    Raises:
        UsageError: if `what` is none of these, or the folder does not exist or cannot be read.
    """
    if what not in get_args(What):
        raise unknown("kind of frame", what, get_args(What))
    records, problems = read_folders(Path(results))
    if what == "cells":
        frame = cells_frame(list(records.values()))
        frame.insert(0, "cell", pd.Series([folder.name for folder in records], dtype=TEXT))
    else:
        frame = _long_frame(LONG_TABLES[what], records, problems)
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return frame


# ---- one row per cell --------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the frame of cells: its name ends in the unit; `dtype` is one of the types above."""

    name: str
    dtype: str
    value: Callable[[Record], Any]


def cells_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record, in their order: what `load` gives for "cells", but without the column `cell`."""
    columns = {
        column.name: _series([column.value(record) for record in records], column.dtype)
        for column in cell_columns(records)
    }
    settings = [dict(_settings(record)) for record in records]
    names = sorted({name for one in settings for name in one})
    columns |= {name: _inferred([one.get(name) for one in settings]) for name in names}
    return pd.DataFrame(columns)


def cell_columns(records: Iterable[Record]) -> list[Column]:
    """The columns of the frame of cells; those of latency depend on the batch sizes that were timed."""
    batches = sorted({at.batch for record in records for at in _cost(record).latency or ()})
    return [
        Column("method", TEXT, lambda record: record.method),
        Column("benchmark", TEXT, lambda record: record.benchmark),
        Column("scenario", TEXT, lambda record: record.scenario),
        Column("seed", COUNT, lambda record: record.seed),
        Column("status", TEXT, lambda record: record.status),
        Column("reason", TEXT, lambda record: record.reason),
        *map(_metric_column, METRICS),
        *map(_total_column, _fields(adds_up=True)),
        *(column for batch in batches for column in _latency_columns(batch)),
        Column("peak_memory_kind", TEXT, _memory_kind),
        *(column for phase in ("training", "inference") for column in _memory_columns(phase)),
        *map(_last_column, _fields(adds_up=False)),
        Column("plain_vit_flops_per_image", INTEGER, lambda record: _cost(record).plain_flops),
        Column("backbone", TEXT, lambda record: record.manifest.backbone),
        Column("protocol", TEXT, lambda record: _part(record, "protocol").get("name")),
        Column("scale", TEXT, lambda record: record.config.get("scale")),
        Column("eval_on", TEXT, lambda record: record.config.get("eval_on")),
        Column("tasks", COUNT, lambda record: record.tasks),
        Column("image_size_pixels", INTEGER, lambda record: _part(record, "protocol").get("image_size")),
        Column("precision", TEXT, lambda record: record.manifest.precision),
        Column("device", TEXT, lambda record: record.manifest.device),
        Column("threads", COUNT, lambda record: record.manifest.threads),
        Column("commit", TEXT, lambda record: record.manifest.commit),
        Column("uncommitted_changes", FLAG, lambda record: record.manifest.dirty),
    ]


def _series(values: Any, dtype: str) -> pd.Series[Any]:
    """The values with their type, or as they are: an integer may need more than 64 bits."""
    try:
        return pd.Series(values, dtype=dtype)
    except (OverflowError, TypeError, ValueError):
        return pd.Series(values, dtype=TEXT)


def _metric_column(metric: Metric) -> Column:
    def value(record: Record) -> float | None:
        if record.correct is None or record.counts is None:
            return None
        return metric.compute(record.correct, record.counts)

    return Column(f"{metric.name}_fraction", FLOAT, value)


def _cost(record: Record) -> Cost:
    return record.cost or Cost()


def _fields(adds_up: bool) -> list[str]:
    """The fields of `ExperienceCost` that add up over the tasks (time, images, energy), or the sizes."""
    additive = ("_seconds", "_images", "_joules")
    return [name for name in ExperienceCost.model_fields if name.endswith(additive) == adds_up]


def _dtype(field: str) -> str:
    return FLOAT if float in get_args(ExperienceCost.model_fields[field].annotation) else INTEGER


def _total_column(field: str) -> Column:
    what, _, unit = field.rpartition("_")
    return Column(f"{what}_total_{unit}", _dtype(field), lambda record: _cost(record).total(field))


def _last_column(field: str) -> Column:
    return Column(UNIT_NAMES.get(field, field), _dtype(field), lambda record: _cost(record).last(field))


def _latency_columns(batch: int) -> list[Column]:
    def column(name: str, value: Callable[[Any], float]) -> Column:
        def of_record(record: Record) -> float | None:
            latency = _cost(record).last_latency(batch)
            return value(latency) if latency else None

        return Column(f"latency_batch_{batch}_{name}", FLOAT, of_record)

    return [
        column("median_seconds", lambda latency: latency.model.median),
        column("plain_vit_median_seconds", lambda latency: latency.plain.median),
        column("ratio_to_plain_vit", lambda latency: latency.ratio),
    ]


def _memory_kind(record: Record) -> str | None:
    memory = _cost(record).peak_memory
    return memory.kind if memory else None


def _memory_columns(phase: str) -> list[Column]:
    def column(name: str, value: Callable[[Peak], int]) -> Column:
        def of_record(record: Record) -> int | None:
            peak = getattr(_cost(record).peak_memory, phase, None)
            return value(peak) if peak else None

        return Column(f"peak_memory_{phase}_{name}", INTEGER, of_record)

    return [
        column("bytes", lambda peak: peak.peak),
        column("baseline_bytes", lambda peak: peak.baseline),
    ]


# ---- settings ----------------------------------------------------------------------------------

#: Fields of the protocol that have a column already.
_SHOWN = ("name", "backbone", "image_size", "precision")


def _part(record: Record, name: str) -> Mapping[str, Any]:
    """The configuration of the method, the benchmark or the protocol."""
    part = record.config.get(name)
    return part if isinstance(part, Mapping) else {}


def _settings(record: Record) -> Iterator[tuple[str, Any]]:
    """(column, value) of the options of a cell, named as in `--set OWNER.OPTION=VALUE`."""
    for owner in ("method", "benchmark"):
        options = _part(record, owner).get("options")
        for name, value in (options if isinstance(options, Mapping) else {}).items():
            yield f"{owner}.{name}", _scalar(value)
    for name, value in _part(record, "protocol").items():
        if name not in _SHOWN:
            yield f"protocol.{name}", _scalar(value)


def _scalar(value: Any) -> Any:
    """Lists and tables as JSON, so that rows can be grouped by any column."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _inferred(values: list[Any]) -> pd.Series[Any]:
    """A column with the type that all its values have."""
    types = {type(value) for value in values if value is not None}
    for legal, dtype in (({bool}, FLAG), ({int}, INTEGER), ({int, float}, FLOAT)):
        if types and types <= legal:
            return _series(values, dtype)
    return pd.Series(values, dtype=TEXT)


# ---- several rows per cell ---------------------------------------------------------------------


@dataclass(frozen=True)
class LongTable:
    """The columns after `KEYS` with their types, and their values for one finished cell in its folder."""

    columns: Mapping[str, str]
    values: Callable[[Path, Record], Mapping[str, Any]]


def _long_frame(table: LongTable, records: Mapping[Path, Record], problems: list[str]) -> pd.DataFrame:
    """The rows of all finished cells; what is wrong with the file of a cell is added to `problems`."""
    types = KEYS | dict(table.columns)
    parts = []
    for folder, record in records.items():
        if record.done:
            try:
                parts.append(_rows(folder, record, table.values(folder, record), types))
            except PredictionsError as error:
                problems.append(str(error))
    empty = pd.DataFrame({name: pd.Series([], dtype=dtype) for name, dtype in types.items()})
    return pd.concat(parts, ignore_index=True) if parts else empty


def _rows(folder: Path, record: Record, values: Mapping[str, Any], types: Mapping[str, str]) -> pd.DataFrame:
    count = len(next(iter(values.values())))
    keys = (folder.name, record.method, record.benchmark, record.scenario, record.seed)
    columns = {name: [key] * count for name, key in zip(KEYS, keys, strict=True)} | dict(values)
    return pd.DataFrame({name: _series(columns[name], dtype) for name, dtype in types.items()})


def _by_column(names: Iterable[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


TASKS = {
    "after_task": COUNT,
    "test_task": COUNT,
    "test_domain": TEXT,
    "correct": COUNT,
    "count": COUNT,
    "accuracy_fraction": FLOAT,
}


def _task_values(folder: Path, record: Record) -> Mapping[str, Any]:
    domains = dict(enumerate(record.domains or (), start=1)) if len(record.counts or ()) > 1 else {}
    rows = [
        (learnt, tested, domains.get(tested), hits, count, hits / count)
        for learnt, row in enumerate(record.correct or (), start=1)
        for tested, (hits, count) in enumerate(zip(row, record.counts or (), strict=True), start=1)
        if hits is not None
    ]
    return _by_column(TASKS, rows)


EXPERIENCES = {"task": COUNT} | {
    UNIT_NAMES.get(field, field): _dtype(field) for field in ExperienceCost.model_fields
}


def _experience_values(folder: Path, record: Record) -> Mapping[str, Any]:
    rows = [
        (task, *(getattr(cost, field) for field in ExperienceCost.model_fields))
        for task, cost in enumerate(_cost(record).experiences, start=1)
    ]
    return _by_column(EXPERIENCES, rows)


LATENCY = {"after_task": COUNT, "batch": COUNT, "round": COUNT, "model": TEXT, "seconds": FLOAT}


def _latency_values(folder: Path, record: Record) -> Mapping[str, Any]:
    rows = [
        (at.experiences, at.batch, 1 + i // (timing.n // at.rounds), model, seconds)
        for at in _cost(record).latency or ()
        for model, timing in (("method", at.model), ("plain ViT", at.plain))
        for i, seconds in enumerate(timing.samples)
    ]
    return _by_column(LATENCY, rows)


PREDICTIONS = {"after_task": "int32", "row": "int32", "true": "int32", "predicted": "int32"}


def _prediction_values(folder: Path, record: Record) -> Mapping[str, Any]:
    content = predictions.read(record.predictions, folder)
    tasks, images = np.nonzero(content.predicted != content.not_evaluated)
    return {
        "after_task": tasks + 1,
        "row": content.rows[images],
        "true": content.true[images],
        "predicted": content.predicted[tasks, images],
    }


LONG_TABLES = {
    "tasks": LongTable(TASKS, _task_values),
    "experiences": LongTable(EXPERIENCES, _experience_values),
    "latency": LongTable(LATENCY, _latency_values),
    "predictions": LongTable(PREDICTIONS, _prediction_values),
}
