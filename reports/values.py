"""Numbers of one finished cell, in the units that reports show; None where a cell does not have the number.

A column of a table is one of these functions, averaged over the seeds of a method. Those that take arguments
give the same function for the same arguments, so that `reports.groups.Row` can keep what it has computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Literal

from bench.costs import Cost, Latency, Peak
from bench.metrics import METRICS, Metric
from bench.record import Record

Value = Callable[[Record], float | None]

#: Which end of the stream of tasks a number belongs to.
End = Literal["first", "last"]
ENDS: tuple[End, End] = ("first", "last")
_POSITION = {"first": 0, "last": -1}

KIB, MIB = 2**10, 2**20

#: The kinds of memory in `bench.costs.PeakMemory`, as tables name them.
MEMORY = {"cuda": "allocated on the GPU", "rss": "resident"}

METRIC_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


# ---- metrics -----------------------------------------------------------------------------------


def scaled(record: Record, metric: str) -> float | None:
    """A metric of `bench.metrics`, in percent or percentage points."""
    if record.correct is None or record.counts is None:
        return None
    value = METRIC_BY_NAME[metric].compute(record.correct, record.counts)
    return None if value is None else 100 * value


@cache
def metric_value(name: str) -> Value:
    """A metric by its name, as `scaled` gives it."""
    return lambda record: scaled(record, name)


#: The final accuracy in percent; methods are ranked by it.
final_accuracy = metric_value("accuracy")


# ---- training and sizes ------------------------------------------------------------------------


def cost_of(record: Record) -> Cost:
    """The costs of a cell; those of a cell in which nothing was measured are all empty."""
    return record.cost or Cost()


@cache
def total(field: str) -> Value:
    """A field of `bench.costs.ExperienceCost`, summed over the tasks."""
    return lambda record: cost_of(record).total(field)


@cache
def per_task(field: str) -> Value:
    """A field of `bench.costs.ExperienceCost`, averaged over the tasks."""

    def mean(record: Record) -> float | None:
        whole = cost_of(record).total(field)
        return None if whole is None else whole / record.tasks

    return mean


@cache
def at_task(field: str, end: End, unit: float = 1) -> Value:
    """A field of `bench.costs.ExperienceCost` at the first or the last task, in multiples of `unit`."""

    def value(record: Record) -> float | None:
        values = cost_of(record).by_experience(field)
        entry: float | None = values[_POSITION[end]] if values else None
        return None if entry is None else entry / unit

    return value


def images_per_second(record: Record) -> float | None:
    """Images of all training steps, over the time of training."""
    cost = cost_of(record)
    images, seconds = cost.total("train_images"), cost.total("train_seconds")
    return images / seconds if images and seconds else None


def passes_made(record: Record) -> float | None:
    """Images that passed through the backbone in training, for each image in a training step."""
    return _per_image(record, "forward_images")


def passes_without_cache(record: Record) -> float | None:
    """As `passes_made`, if no features were kept: what training by this method costs anybody else."""
    return _per_image(record, "forward_images", "cached_images")


def _per_image(record: Record, *fields: str) -> float | None:
    totals = [cost_of(record).total(field) for field in fields]
    images = cost_of(record).total("train_images")
    passes = [value for value in totals if value is not None]
    return sum(passes) / images if images and len(passes) == len(fields) else None


def flops_ratio(record: Record) -> float | None:
    """Operations per image after the last task, relative to the plain ViT."""
    cost = cost_of(record)
    flops = at_task("flops", "last")(record)
    return flops / cost.plain_flops if flops is not None and cost.plain_flops else None


# ---- latency -----------------------------------------------------------------------------------


def latencies(record: Record) -> list[Latency]:
    """Everything that was measured of a cell's latency."""
    return cost_of(record).latency or []


def batch_sizes(records: Iterable[Record]) -> list[int]:
    """The batch sizes at which latency was measured, ascending."""
    return sorted({latency.batch for record in records for latency in latencies(record)})


def outer_batch_sizes(records: Iterable[Record]) -> list[int]:
    """The smallest and the largest batch size at which latency was measured."""
    sizes = batch_sizes(records)
    return sorted({*sizes[:1], *sizes[-1:]})


def last_latency(record: Record, batch: int) -> Latency | None:
    """What was measured at a batch size after the last task."""
    return cost_of(record).last_latency(batch)


@cache
def latency_ratio(batch: int) -> Value:
    """Latency relative to the plain ViT, after the last task."""

    def ratio(record: Record) -> float | None:
        latency = last_latency(record, batch)
        return latency.ratio if latency else None

    return ratio


# ---- memory ------------------------------------------------------------------------------------


def peak(record: Record, kind: str, phase: str) -> Peak | None:
    """The peak of the phase "training" or "inference"; None if memory of another kind was measured."""
    memory = cost_of(record).peak_memory
    phase_peak: Peak | None = getattr(memory, phase) if memory and memory.kind == kind else None
    return phase_peak


@cache
def training_memory(kind: str) -> Value:
    """What training added to the memory in use before, in MiB."""

    def mebibytes(record: Record) -> float | None:
        training = peak(record, kind, "training")
        return training.above / MIB if training else None

    return mebibytes
