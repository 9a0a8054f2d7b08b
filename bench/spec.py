"""What is run: the settings of a command, the protocol, the cell. Frozen, validated, light to import."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from bench.model import ADDED, ADDED_TO_CELLS, FrozenModel, Scenario, without_defaults
from bench.options import TypedText, as_typed, loads, parse_options, read_options
from bench.textfile import read_text
from methods.errors import UsageError, describe_validation, one_line, quote, unknown
from methods.hyper import check_fit

ScaleName = Literal["smoke", "quick", "full"]
EvalOn = Literal["test", "validation"]
Device = Literal["cpu", "cuda"]
Rerun = Literal["missing", "failed", "all"]
#: Options of a benchmark or method as a hashable key.
OptionsKey = tuple[tuple[str, Any], ...]

SECONDS = {"s": 1, "m": 60, "h": 3600}

MAX_IMAGE_SIZE = 4096  # beyond it a mistyped size takes all memory before it can be rejected
MAX_COUNT = 2**31 - 1  # what every library takes
MAX_SEED = 2**63 - 1


class Protocol(FrozenModel):
    """What is held equal between methods. Under "paper" a method's published recipe may differ."""

    name: Literal["common", "paper"] = "common"
    backbone: str = Field(description="full timm tag")
    image_size: int = Field(gt=0, le=MAX_IMAGE_SIZE, description="side of the input, pixels")
    epochs: int = Field(gt=0, le=MAX_COUNT, description="passes over an experience's images")
    batch_size: int = Field(gt=0, le=MAX_COUNT, description="training images per step")
    normalisation: Literal["backbone", "unit"] = Field(
        "backbone", description="the backbone's own mean and std, or [0, 1] as the papers' code has it"
    )
    augmentation: Literal["none", "flip", "crop-flip", "small-crop-flip"] = Field(
        "flip", description="see bench.cell.batches"
    )
    schedule: Literal["cosine", "coda", "constant"] = Field("cosine", description="see bench.cell.strategy")
    head_init: Literal["zero", "default"] = Field("zero", description="how a classifier's new rows start")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward and backward passes")
    drop_last: bool = Field(False, description="leave out the last, smaller batch of an epoch")
    class_order: Literal["seeded", "identity", "listed"] = Field(
        "seeded", description="see bench.benchmarks.splits; listed: of the file that --class-order names"
    )
    gelu: Literal["backbone", "tanh"] = Field(
        "backbone", description="the activation as timm builds it, or JAX's approximation by tanh"
    )
    test_batches: Literal["mixed", "task"] = Field(
        "mixed", description="whether a batch of test images is of all tasks seen, or of one"
    )
    geometry: Literal["square", "whole", "squash"] = Field(
        "square", description="how images become inputs, see bench.cell.batches"
    )
    test_crop: float | None = Field(
        None, gt=0, le=1, description="share of the side that a test image keeps (null: the benchmark's own)"
    )

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        return without_defaults(content, ADDED)


#: What the code of CODA-Prompt and InfLoRA does, where it differs from the common protocol; each field's
#: reason is in docs/protocols.md.
PAPER: Mapping[str, Any] = {
    "name": "paper",
    "normalisation": "unit",
    "augmentation": "crop-flip",
    "schedule": "coda",
    "head_init": "default",
    "geometry": "whole",
}


class Choice(FrozenModel):
    """A method or a benchmark as the command names it: `name[:key=value+key=value]`."""

    name: str
    options: dict[str, Any] = Field({})

    @property
    def label(self) -> str:
        """The row's name: options that were set are part of it, because they make another row."""
        return label_of(self.name, self.options)

    @property
    def frozen_options(self) -> OptionsKey:
        """The options as a key for caches."""
        return as_key(self.options)


def seconds_of(value: object) -> object:
    """ "90", "90s", "30m", "2h" -> seconds; other types are returned unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", value)
    if match is None:
        raise ValueError("legal: seconds, or a number with its unit, such as 90s, 30m, 2h")
    return float(match[1]) * SECONDS[match[2] or "s"]


#: Seconds; a text may have a unit, such as 30m.
Duration = Annotated[float, Field(gt=0), BeforeValidator(seconds_of)]


class Settings(FrozenModel):
    """One command: which cells to run, and how."""

    methods: tuple[Choice, ...] = Field(
        min_length=1,
        description="names, separated by commas; a variant is name:option=value+option=value, with quotes "
        "around a value that has a comma or a plus; all: every registered one (default: the five methods "
        "that the project is about, and four references)",
    )
    benchmarks: tuple[Choice, ...] = Field(
        min_length=1, description="names, separated by commas; options as with methods (default: digits)"
    )
    seeds: tuple[int, ...] = Field(
        (0, 1, 2), min_length=1, description="integers, separated by commas (default: 0,1,2)"
    )
    tasks: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="number of tasks (default: the benchmark's own)"
    )
    scenario: Scenario | None = Field(
        None,
        description="class-incremental | domain-incremental: whether a task has new classes, or the same "
        "classes in a new domain (default: the benchmark's own)",
    )
    scale: ScaleName = Field("full", description="smoke | quick | full (default: full, the papers' setting)")
    protocol: Literal["common", "paper"] = Field(
        "common",
        description="common: equal conditions for all methods (default); paper: each method's own recipe",
    )
    protocol_options: dict[str, Any] = Field({})
    backbone: str | None = Field(None, description="full timm tag (default: the benchmark's own)")
    weights: str | None = Field(None, description="safetensors file of the backbone, or 'random'")
    image_size: int | None = Field(
        None,
        gt=0,
        le=MAX_IMAGE_SIZE,
        description="side of the input in pixels (default: the benchmark's own)",
    )
    class_order: str | None = Field(
        None,
        description="seeded: the data set's own order for seed 0, else shuffled (default) | identity: its "
        "own order for every seed | FILE: as seeded, but its lines, one class name each, are the own order; "
        "in a domain-incremental stream it is the order of the domains",
    )
    data_root: Path | None = Field(None, description="folder that is searched first for data and weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto | cpu | cuda (default: auto)")
    executor: str = Field(
        "auto",
        description="what runs the cells: auto (default) | serial | processes, on this machine | ray, on a "
        "cluster",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="cells at a time (default: auto one per core, or one on a GPU; serial 1; processes one "
        "per GPU or core; ray as many as fit)",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="CPU threads per cell (default: all, divided by the number of workers; ray: 1)",
    )
    cell_timeout: Duration | None = Field(
        None, description="time limit per cell, e.g. 30m or 2h (default: none)"
    )
    ray_address: str | None = Field(
        None, description="address of a running Ray cluster, or auto (default: start a local one)"
    )
    results: Path = Field(Path("results"), description="folder of the records (default: results)")
    eval_on: EvalOn = Field(
        "test",
        description="test | validation; validation holds out training images, for choosing hyper-parameters",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="fp32 | bf16 (default: fp32)")
    feature_cache: bool = Field(
        True,
        description="compute the frozen backbone's features every time; by default they are kept on disk",
    )
    rerun: Rerun = Field(
        "missing",
        description="missing | failed | all: which cells with a record are run again (default: missing)",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > MAX_SEED:
            raise ValueError(f"seeds are distinct integers from 0 to {MAX_SEED}")
        return seeds


class Component(FrozenModel):
    """A method or benchmark with every option resolved."""

    name: str
    label: str
    options: dict[str, JsonValue]

    @property
    def frozen_options(self) -> OptionsKey:
        """The options as a key for caches."""
        return as_key(self.options)


class Cell(FrozenModel):
    """One (method, benchmark, seed) under one protocol, resolved whole: the unit of work."""

    method: Component
    benchmark: Component
    seed: int
    scale: ScaleName
    eval_on: EvalOn
    device: Device
    tasks: int
    task_sizes: tuple[int, ...] | None
    class_order: tuple[int, ...] | None
    split_sha256: str | None = Field(
        description="null only in a cell that is skipped because its data are missing"
    )
    data_sha256: str | None = Field(
        None,
        description="hash of the images; null where their content is fixed by a checksum in the code, and in "
        "a cell that is skipped",
    )
    backbone_sha256: str | None
    protocol: Protocol
    places: tuple[str, ...] = Field(
        (), description="the options of the benchmark that say where its files are, not what they are"
    )
    scenario: Scenario = "class-incremental"
    domains: tuple[str, ...] | None = Field(
        None, description="in the order learnt; null in a class-incremental stream and in a skipped cell"
    )

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        return without_defaults(content, ADDED_TO_CELLS)

    @property
    def id(self) -> str:
        """Folder name: readable, and ending in a hash of everything but labels and places.

        The files at the places have hashes of their own, so the same files elsewhere make the same cell. In a
        cell without these hashes, because its data are missing, the places count.
        """
        content = self.model_dump(mode="json", exclude=None if self.data_sha256 else {"data_sha256"})
        for part in ("method", "benchmark"):
            content[part].pop("label")
        places = dict.fromkeys(content.pop("places"))
        if self.split_sha256 is not None:
            content["benchmark"]["options"] |= places
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        benchmark = self.benchmark.name if places else self.benchmark.label
        names = f"{self.method.label}-{benchmark}-s{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9._=-]+', '-', names)[:80]}-{digest[:12]}"

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def without_method(self) -> Cell:
        """What the cells of different methods have in common: the images."""
        return self.model_copy(update={"method": Component(name="any", label="any", options={})})

    def without_data(self) -> Cell:
        """This cell as it is recorded while its data or weights are missing."""
        return self.model_copy(
            update=dict.fromkeys(
                ("split_sha256", "data_sha256", "backbone_sha256", "task_sizes", "class_order", "domains")
            )
        )


def run_options() -> dict[str, str]:
    """The long options of `run`, without dashes in front -> what they mean; keys of the config file, too."""
    fields = Settings.model_fields.items()
    return {name.replace("_", "-"): field.description for name, field in fields if field.description}


def label_of(name: str, options: Mapping[str, Any]) -> str:
    """`name`, or `name:key=value+key=value` with the keys sorted."""
    parts = "+".join(f"{k}={_text(v)}" for k, v in sorted(options.items()))
    return f"{name}:{parts}" if parts else name


def as_key(options: Mapping[str, Any]) -> OptionsKey:
    """Options as a key for caches: pairs in the order of their names, lists as tuples."""
    return tuple(sorted((k, _hashable(v)) for k, v in options.items()))


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return as_key(value)
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _text(value: Any) -> str:
    if isinstance(value, TypedText):
        return value
    return as_typed(value) if isinstance(value, str) else json.dumps(value, default=str)


def parse_choice(text: str) -> Choice:
    """`duallora:gate=none+rank=8` -> Choice("duallora", {"gate": "none", "rank": "8"}), values as typed."""
    name, colon, rest = text.strip().partition(":")
    if not name or (colon and not rest):
        raise UsageError(f"cannot read '{one_line(text)}'; legal: name or name:option=value+option=value")
    options = parse_options(rest)
    keys = [key for key, _ in options]
    if duplicates := sorted({key for key in keys if keys.count(key) > 1}):
        raise UsageError(
            f"cannot read '{one_line(text)}': {one_line(', '.join(duplicates))} given twice; name each "
            "option once"
        )
    return Choice(name=name, options=dict(options))


def settings_from(values: Mapping[str, Any], sets: Iterable[tuple[str, Any]] = ()) -> Settings:
    """Validate the values of the command line and of the config file.

    Args:
        values: fields of `Settings`; `methods` and `benchmarks` as texts.
        sets: dotted options, ("duallora.rank", 8); the first part names a method or a benchmark of this
            command, or "protocol".

    Raises:
        UsageError: for an unknown field, a value of the wrong type, an option of something not in the grid.
    """
    for name, value in values.items():
        if name not in Settings.model_fields:
            legal = {*Settings.model_fields, "set"} - {"protocol_options"}
            raise unknown("setting", name, legal)
        check_fit(name, value)
    fields = dict(values)
    for field in ("methods", "benchmarks"):
        texts = _names(field, fields.get(field, ()))
        fields[field] = _distinct_choices(field, [parse_choice(text) for text in texts])
    for dotted, value in dict(sets).items():  # of one option given twice, the later value
        check_fit("--set", dotted)
        check_fit(f"--set {dotted}", value)
        _apply(fields, dotted, value)
    try:
        return Settings.model_validate(fields)
    except ValidationError as error:
        raise UsageError(describe_validation(error)) from None


def _names(field: str, value: object) -> Sequence[str]:
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return value
    raise UsageError(
        f'{field}: a list of names is legal, such as ["finetune", "ncm:rank=4"], got {quote(value)}'
    )


def _distinct_choices(field: str, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    labels = [choice.label for choice in choices]
    duplicates = sorted({label for label in labels if labels.count(label) > 1})
    if duplicates:
        raise UsageError(f"{field}: {one_line(', '.join(duplicates))} given twice; name each once")
    return tuple(choices)


def _apply(fields: dict[str, Any], dotted: str, value: Any) -> None:
    owner, dot, option = dotted.partition(".")
    if not dot or not option:
        raise UsageError(
            f"cannot read '--set {one_line(dotted)}'; legal: owner.option=value, such as finetune.rank=4"
        )
    if owner == "protocol":
        options = fields.get("protocol_options", {})
        if not isinstance(options, Mapping):
            raise UsageError(
                f"protocol_options: a table is legal, such as {{epochs = 3}}, got {quote(options)}"
            )
        fields["protocol_options"] = {**options, option: value}
        return
    names = {choice.name for field in ("methods", "benchmarks") for choice in fields[field]}
    if owner not in names:
        raise unknown("owner of --set, which must be in this grid:", owner, [*names, "protocol"])
    for field in ("methods", "benchmarks"):
        fields[field] = tuple(_with_option(choice, owner, option, value) for choice in fields[field])


def _with_option(choice: Choice, owner: str, option: str, value: Any) -> Choice:
    """The option, unless the variant sets it itself: the variant's own option takes precedence."""
    if choice.name != owner:
        return choice
    return choice.model_copy(update={"options": {option: value, **choice.options}})


def make_protocol(values: Mapping[str, Any]) -> Protocol:
    """Validate a protocol's fields.

    Raises:
        UsageError: for an unknown field or an illegal value.
    """
    fields = read_options(values, Protocol.model_fields)
    for name, value in fields.items():
        if name not in Protocol.model_fields:
            raise unknown("option of the protocol", name, Protocol.model_fields)
        check_fit(f"protocol.{name}", value)
    try:
        return Protocol.model_validate(fields)
    except ValidationError as error:
        raise UsageError(describe_validation(error, "protocol")) from None


def read_toml(path: Path) -> dict[str, Any]:
    """A config file: the long options of `run` as keys, a table [set] for dotted options.

    Raises:
        UsageError: if the file is missing or not TOML (with the line).
    """
    check_fit("the config file's name", str(path))
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the config file '{path}': {reason}") from None
    try:
        return loads(text)
    except ValueError as error:
        raise UsageError(f"the config file '{path}' is not valid TOML: {one_line(str(error))}") from None
