"""What a cell cost, as its record keeps it. Times are in seconds, memory and sizes in bytes.

Samples and counts are stored; medians, percentiles, ratios and rates are computed from them when they are
asked for. How each quantity is measured is in `bench.probes` and in docs/measurements.md; null means "not
measured". To store another quantity of each experience, add a field to `ExperienceCost` and fill it in
`bench.cell.runner`; `bench.load` sums fields whose names end in _seconds, _images or _joules over the tasks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cached_property
from math import fsum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.model import FrozenModel


def in_utc(text: str) -> str:
    """The text, if it is a time in UTC.

    Raises:
        ValueError: if it is not.
    """
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("must be a time in UTC, ISO 8601, such as 2025-01-31T12:00:00+00:00")
    return text


UtcTime = Annotated[str, AfterValidator(in_utc)]
Seconds = Annotated[float, Field(gt=0)]

#: Inference is timed until the interval of each ratio is at most this share of it to either side.
NARROW = 0.02
#: Rounds below which the spread over rounds says nothing.
FEW_ROUNDS = 5
Bytes = Annotated[int, Field(ge=0)]


class Timing(FrozenModel):
    """Seconds of one call, measured several times, in the order of measuring."""

    samples: list[Seconds] = Field(min_length=1)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def median(self) -> float:
        """50th percentile, seconds."""
        return self._percentiles[49]

    @property
    def p95(self) -> float:
        """95th percentile, seconds."""
        return self._percentiles[94]

    @property
    def p99(self) -> float:
        """99th percentile, seconds."""
        return self._percentiles[98]

    @cached_property
    def _percentiles(self) -> list[float]:
        return percentiles(self.samples)


def percentiles(samples: Sequence[float]) -> list[float]:
    """The 1st to the 99th percentile of at least one sample, interpolated between the samples."""
    many = len(samples) > 1
    return statistics.quantiles(samples, n=100, method="inclusive") if many else [*samples] * 99


class Latency(FrozenModel):
    """Inference at one batch size, from normalised images to logits.

    Attributes:
        experiences: number of experiences the model had learnt.
        batch: images per call.
        rounds: rounds of timing; every round has the same number of samples.
        warmup: untimed calls before the first round.
        stable: whether the times had settled by the end of the warm-up.
        model: the samples of the model.
        plain: the samples of the timm ViT without a method, from the same rounds.
    """

    experiences: int = Field(ge=1)
    batch: int = Field(ge=1)
    rounds: int = Field(ge=1)
    warmup: int = Field(ge=1)
    stable: bool
    model: Timing
    plain: Timing

    @model_validator(mode="after")
    def _rounds_are_complete(self) -> Latency:
        if self.model.n != self.plain.n or self.model.n % self.rounds:
            raise ValueError(
                f"{self.model.n} samples of the model and {self.plain.n} of the plain ViT are not the same "
                f"number in each of {self.rounds} rounds"
            )
        return self

    @cached_property
    def ratio(self) -> float:
        """Latency relative to the plain ViT: the median over rounds of `median(model) / median(plain)`."""
        return statistics.median(self._ratios)

    @cached_property
    def width(self) -> float | None:
        """Half-width of the 95 % interval of `ratio`, as a share of it; None for few rounds."""
        return relative_width(self._ratios)

    @cached_property
    def _ratios(self) -> list[float]:
        return ratios_by_round(self.model.samples, self.plain.samples, self.rounds)


def ratios_by_round(model: Sequence[float], plain: Sequence[float], rounds: int) -> list[float]:
    """median(model) / median(plain) within each round."""
    calls = len(model) // rounds
    starts = range(0, len(model), calls)
    return [statistics.median(model[i : i + calls]) / statistics.median(plain[i : i + calls]) for i in starts]


def relative_width(ratios: Sequence[float]) -> float | None:
    """Half-width of the 95 % interval of a median, as a share of it: 1.57 IQR / sqrt(n).

    The notch of a box plot (McGill, Tukey and Larsen, The American Statistician 32, 1978). None for fewer
    than `FEW_ROUNDS` values.
    """
    if len(ratios) < FEW_ROUNDS:
        return None
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return 1.57 * (high - low) / math.sqrt(len(ratios)) / middle


class TimingConditions(FrozenModel):
    """The conditions under which inference was timed.

    Attributes:
        merged: whether adapters were merged into the weights.
        beside: the rows whose models were timed in the same rounds, this one included.
    """

    device: str
    precision: str
    threads: int = Field(ge=1)
    image_size: int = Field(ge=1)
    merged: bool
    beside: list[str] = Field(min_length=1)
    started: UtcTime


class Peak(FrozenModel):
    """The peak memory of a phase.

    Attributes:
        peak: highest memory in use, bytes.
        baseline: memory in use before the model was built, bytes.
        reserved: peak of what CUDA's caching allocator held, bytes; null on a CPU.
    """

    peak: Bytes
    baseline: Bytes
    reserved: Bytes | None = None

    @property
    def above(self) -> int:
        """What the phase added to the baseline, bytes."""
        return max(0, self.peak - self.baseline)


class PeakMemory(FrozenModel):
    """Memory allocated on the device ("cuda") or resident in the process ("rss").

    Each phase ran in a separate process; inference at `inference_batch` images per call.
    """

    kind: Literal["cuda", "rss"]
    training: Peak | None = None
    inference: Peak | None = None
    inference_batch: int | None = Field(None, ge=1)


class ExperienceCost(FrozenModel):
    """What one experience cost, and the sizes of the method after it.

    Attributes:
        train_seconds: the whole training of the experience.
        prepare_seconds: the part of it before the first epoch.
        consolidate_seconds: the part of it after the last epoch.
        train_images: images in all training steps.
        forward_images: images that passed through the backbone in training, for steps and for statistics.
        cached_images: images that did not have to, because the frozen backbone's features of them were kept.
        eval_seconds: the evaluation afterwards; null where nothing was evaluated.
        energy_joules: energy that the whole GPU used in training.
        flops: floating-point operations of the prediction of one image.
        trainable: parameters trained in this experience.
        stored, stored_bytes: elements and bytes that the method keeps beside the backbone.
        deployed, deployed_bytes: elements and bytes that inference needs, backbone included.
    """

    train_seconds: float | None = Field(None, ge=0)
    prepare_seconds: float | None = Field(None, ge=0)
    consolidate_seconds: float | None = Field(None, ge=0)
    train_images: int | None = Field(None, ge=0)
    forward_images: int | None = Field(None, ge=0)
    cached_images: int | None = Field(None, ge=0)
    eval_seconds: float | None = Field(None, ge=0)
    energy_joules: float | None = None
    flops: int | None = Field(None, ge=0)
    trainable: int | None = Field(None, ge=0)
    stored: int | None = Field(None, ge=0)
    stored_bytes: Bytes | None = None
    deployed: int | None = Field(None, ge=0)
    deployed_bytes: Bytes | None = None


class Cost(FrozenModel):
    """What a cell cost.

    Attributes:
        experiences: one entry per experience, in their order.
        feature_images: images that passed through the frozen backbone so that their features are kept; 0
            where all were read from disk, null where none are kept. No other cost contains them.
        feature_seconds: that this took, with reading.
        plain_flops: floating-point operations of the timm ViT without a method, for one image.
        peak_memory: of training and of inference.
        latency: inference, by number of experiences learnt and batch size; null until it is timed.
        conditions: under which `latency` was measured.
        unmeasured: by quantity, why it is null although it should have been measured or recorded.
    """

    experiences: list[ExperienceCost] = Field([])
    feature_images: int | None = Field(None, ge=0)
    feature_seconds: float | None = Field(None, ge=0)
    plain_flops: int | None = Field(None, gt=0)
    peak_memory: PeakMemory | None = None
    latency: list[Latency] | None = None
    conditions: TimingConditions | None = None
    unmeasured: dict[str, str] = Field({})

    @model_validator(mode="after")
    def _latency_has_its_conditions(self) -> Cost:
        if (self.latency is None) != (self.conditions is None):
            raise ValueError("latency and its conditions are measured together, or neither of them")
        return self

    def by_experience(self, field: str) -> list[Any]:
        """The values of a field of `ExperienceCost`, one per experience; empty if none was measured."""
        values = [getattr(experience, field) for experience in self.experiences]
        return values if any(value is not None for value in values) else []

    def total(self, field: str) -> float | None:
        """The sum of a field over all experiences; None unless it was measured in each of them."""
        values = self.by_experience(field)
        return fsum(values) if values and None not in values else None

    def last(self, field: str) -> Any:
        """The value of a field after the last experience; None if it was not measured."""
        return getattr(self.experiences[-1], field) if self.experiences else None

    def last_latency(self, batch: int) -> Latency | None:
        """Inference at a batch size after the last experience; None if it was not timed."""
        timed = [latency for latency in self.latency or () if latency.batch == batch]
        return max(timed, key=lambda latency: latency.experiences, default=None)

    @property
    def throughput(self) -> float | None:
        """Images per second at the largest batch, after the last experience: batch / median latency."""
        if not self.latency:
            return None
        last = max(self.latency, key=lambda latency: (latency.batch, latency.experiences))
        return last.batch / last.model.median
