"""What a cell cost, as its record keeps it. Times are in seconds, memory and sizes in bytes.

Samples are kept, and what is derived from them is checked on reading. How each quantity is measured is in
`bench.probes` and in docs/measurements.md; null means "not measured".
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta
from math import isclose
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

#: Derived numbers are recomputed on reading; they may differ by rounding only.
TOLERANCE = 1e-9


class Frozen(BaseModel):
    """Base of all parts of a record: immutable, no field that is not declared, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
Bytes = Annotated[int, Field(ge=0)]


class Timing(Frozen):
    """Seconds of one call, measured `n` times; percentiles interpolate between the samples."""

    samples: list[Seconds] = Field(min_length=1)
    median: Seconds
    p95: Seconds
    p99: Seconds
    n: int

    @model_validator(mode="after")
    def _follows_from_samples(self) -> Timing:
        expected = summary(self.samples)
        for name, value in expected.items():
            if not same(getattr(self, name), value):
                raise ValueError(f"{name} is {getattr(self, name)}, but the samples give {value}")
        return self


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile and n of the samples."""
    cuts = percentiles(samples)
    return {"median": cuts[49], "p95": cuts[94], "p99": cuts[98], "n": len(samples)}


def percentiles(samples: Sequence[float]) -> list[float]:
    """The 1st to the 99th percentile of at least one sample, interpolated between the samples."""
    many = len(samples) > 1
    return statistics.quantiles(samples, n=100, method="inclusive") if many else [*samples] * 99


def timing(samples: Sequence[float]) -> Timing:
    """The samples with their summary."""
    return Timing.model_validate({"samples": list(samples), **summary(samples)})


class Latency(Frozen):
    """Inference on one batch size, from normalised images to logits, after so many experiences.

    `plain` is the timm ViT without a method, measured in the same rounds. Samples are in the order of the
    rounds, the same number in each; `ratio` is the median over rounds of the quotient of the two medians
    within the round. `warmup` calls came before the first round; `stable` says whether their times had
    settled by then.
    """

    experiences: int = Field(ge=1)
    batch: int = Field(ge=1)
    rounds: int = Field(ge=1)
    warmup: int = Field(ge=1)
    stable: bool
    model: Timing
    plain: Timing
    ratio: float = Field(gt=0)

    @model_validator(mode="after")
    def _whole_rounds(self) -> Latency:
        if self.model.n != self.plain.n or self.model.n % self.rounds:
            raise ValueError(
                f"{self.model.n} samples of the model and {self.plain.n} of the plain ViT are not the same "
                f"number in each of {self.rounds} rounds"
            )
        expected = paired_ratio(self.model.samples, self.plain.samples, self.rounds)
        if not same(self.ratio, expected):
            raise ValueError(f"ratio is {self.ratio}, but the samples give {expected}")
        return self


def paired_ratio(model: Sequence[float], plain: Sequence[float], rounds: int) -> float:
    """Median over rounds of median(model) / median(plain), each within one round."""
    calls = len(model) // rounds
    cuts = range(0, len(model), calls)
    medians = (
        (statistics.median(model[i : i + calls]), statistics.median(plain[i : i + calls])) for i in cuts
    )
    return statistics.median(a / b for a, b in medians)


def same(a: float | None, b: float | None) -> bool:
    """Equal but for rounding."""
    if a is None or b is None:
        return a is b
    return isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


class Conditions(Frozen):
    """What the times of inference were measured under.

    `beside` names the rows whose models were timed in the same rounds, this one included; `merged` says
    whether adapters had been merged into the weights.
    """

    device: str
    precision: str
    threads: int = Field(ge=1)
    image_size: int = Field(ge=1)
    merged: bool
    beside: list[str] = Field(min_length=1)
    started: UtcTime


class Peak(Frozen):
    """The highest point of a phase, and what was in use before the model was built.

    `reserved` is what CUDA's caching allocator held at its highest point; null on a CPU.
    """

    peak: Bytes
    baseline: Bytes
    reserved: Bytes | None = None

    @property
    def above(self) -> int:
        """What the phase added to the baseline."""
        return max(0, self.peak - self.baseline)


class PeakMemory(Frozen):
    """Memory allocated on the device ("cuda") or resident in the process ("rss").

    Each phase ran in a process of its own; inference at `inference_batch` images a call.
    """

    kind: Literal["cuda", "rss"]
    training: Peak | None = None
    inference: Peak | None = None
    inference_batch: int | None = Field(None, ge=1)


class Parameters(Frozen):
    """Sizes after each experience: of what was trained in it, of what the method keeps beside the backbone
    (`stored`), and of all that inference needs (`deployed`); in elements, and in bytes.
    """

    trainable: list[int] | None = None
    stored: list[int] | None = None
    deployed: list[int] | None = None
    stored_bytes: list[Bytes] | None = None
    deployed_bytes: list[Bytes] | None = None


class Cost(Frozen):
    """What a cell cost. Lists have an entry per experience.

    `train_seconds` are those of the whole experience; `prepare_seconds` and `consolidate_seconds` are the
    part of them before the first and after the last epoch. `train_images` counts the images of all training
    steps. `energy_joules` is what the whole GPU drew meanwhile. `throughput` is in images a second, at the
    largest batch, after the last experience. `flops` are those of the prediction of one image, and
    `plain_flops` those of the timm ViT without a method.
    """

    train_seconds: list[float | None] | None = None
    prepare_seconds: list[float | None] | None = None
    consolidate_seconds: list[float | None] | None = None
    train_images: list[int] | None = None
    eval_seconds: list[float | None] | None = None
    energy_joules: list[float | None] | None = None
    latency: list[Latency] | None = None
    conditions: Conditions | None = None
    throughput: float | None = Field(None, gt=0)
    peak_memory: PeakMemory | None = None
    flops: list[int] | None = None
    plain_flops: int | None = Field(None, gt=0)
    parameters: Parameters | None = None

    def per_experience(self) -> dict[str, Sequence[float | None]]:
        """The lists that were measured, by name."""
        own = ("train_seconds", "prepare_seconds", "consolidate_seconds", "train_images", "eval_seconds")
        lists = {name: getattr(self, name) for name in (*own, "energy_joules", "flops")}
        if self.parameters is not None:
            lists |= dict(self.parameters)
        return {name: values for name, values in lists.items() if values is not None}

    @model_validator(mode="after")
    def _latency_has_its_conditions(self) -> Cost:
        given = [value is not None for value in (self.latency, self.conditions, self.throughput)]
        if len(set(given)) > 1:
            raise ValueError("latency, its conditions and throughput are measured together, or none of them")
        if self.latency is not None and not same(self.throughput, throughput_of(self.latency)):
            raise ValueError(
                f"throughput is {self.throughput}, but latency gives {throughput_of(self.latency)}"
            )
        return self


def throughput_of(latency: Sequence[Latency]) -> float:
    """Images a second at the largest batch, after the last experience: batch / median."""
    last = max(latency, key=lambda found: (found.batch, found.experiences))
    return last.batch / last.model.median
