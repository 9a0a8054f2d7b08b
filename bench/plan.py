"""From settings to cells: everything is resolved, found and checked here, before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from bench import backbone
from bench.benchmarks import BENCHMARKS
from bench.benchmarks.base import Benchmark, Source, data_roots
from bench.benchmarks.loading import Arrays, load_arrays
from bench.benchmarks.splits import Split, make_split
from bench.spec import PAPER, Cell, Choice, Component, Device, Protocol, Settings, label_of, make_protocol
from methods.errors import MissingError, UsageError
from methods.hyper import as_plain, make_hyper
from methods.registry import METHODS

#: In place of the status of a record that cannot be read.
DAMAGED = "damaged"


@dataclass(frozen=True)
class Places:
    """Where this machine keeps things; not part of a cell's identity."""

    roots: tuple[Path, ...]
    weights: str | None
    results: Path


@dataclass(frozen=True)
class Planned:
    """A cell, and the reason it cannot be run on this machine, if there is one."""

    cell: Cell
    missing: str | None = None


def places_of(settings: Settings) -> Places:
    """Resolve the folders a command works with."""
    return Places(data_roots(settings.data_root), settings.weights, settings.results)


def plan(settings: Settings, *, skip_missing: bool) -> list[Planned]:
    """The cells of a grid: by benchmark, then seed, then method, so that paired cells run together.

    Args:
        skip_missing: plan cells whose data or weights are missing as skipped, instead of raising.

    Raises:
        MissingError: for data or weights that are not here, unless `skip_missing`.
        UsageError: for anything else that cannot be run as asked.
    """
    places, device = places_of(settings), device_of(settings)
    planned = [
        _planned(settings, places, device, benchmark, method, seed, skip_missing)
        for benchmark in settings.benchmarks
        for seed in settings.seeds
        for method in settings.methods
    ]
    _refuse_twice(planned)
    return planned


def _refuse_twice(planned: Sequence[Planned]) -> None:
    """Two names of one thing, such as `ncm` and `ncm:metric=euclidean`, which is its default."""
    cells = [item.cell.id for item in planned]
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise UsageError(
            f"the grid has the same cell twice: {twice[0]}; two of its names mean the same, because an "
            "option that is set to its default makes no other row; name each once"
        )


def _planned(
    settings: Settings,
    places: Places,
    device: Device,
    benchmark: Choice,
    method: Choice,
    seed: int,
    skip_missing: bool,
) -> Planned:
    cell = _outline(settings, device, benchmark, method, seed)
    try:
        return Planned(_completed(cell, places))
    except MissingError as error:
        if not skip_missing:
            raise
        return Planned(cell, str(error))


def _outline(settings: Settings, device: Device, benchmark: Choice, method: Choice, seed: int) -> Cell:
    """All of a cell that can be known without its data and weights."""
    opened = open_benchmark(benchmark.name, benchmark.frozen_options)
    method_class = METHODS[method.name].load()
    recipe = method_class.paper_options(benchmark.name) if settings.protocol == "paper" else {}
    hyper = make_hyper(method.name, method_class.Hyper, {**recipe, **method.options})
    tasks = settings.tasks or opened.default_tasks
    method_class.check(hyper, tasks)
    return Cell(
        method=_component(method, hyper, recipe),
        benchmark=_component(benchmark, opened.options, {}),
        seed=seed,
        scale=settings.scale,
        eval_on=settings.eval_on,
        device=device,
        tasks=tasks,
        task_sizes=None,
        class_order=None,
        split_sha256=None,
        backbone_sha256=None,
        protocol=_protocol(settings, opened, method_class),
    )


def _component(choice: Choice, resolved: Any, recipe: Mapping[str, Any]) -> Component:
    """Options that are the default, or the recipe's, are left out of the label: they make no other row."""
    options, defaults = as_plain(resolved), {**_defaults(type(resolved)), **recipe}
    changed = {k: v for k, v in options.items() if k not in defaults or v != defaults[k]}
    return Component(name=choice.name, label=label_of(choice.name, changed), options=options)


def _defaults(cls: type[Any]) -> dict[str, Any]:
    fields: Mapping[str, Any] = cls.__pydantic_fields__
    return {
        name: to_jsonable_python(field.get_default())
        for name, field in fields.items()
        if not field.is_required()
    }


def _completed(cell: Cell, places: Places) -> Cell:
    """Add what only the data and the weights tell: the split, the class order, the weights' hash."""
    split = split_of(cell, places)
    weights = find_backbone(cell.protocol.backbone, places.weights, places.roots)
    check_backbone(weights, cell.protocol.image_size)
    return cell.model_copy(
        update={
            "task_sizes": split.task_sizes,
            "class_order": split.class_order,
            "split_sha256": split.sha256,
            "backbone_sha256": weights.sha256,
        }
    )


def _protocol(settings: Settings, benchmark: Benchmark[Any], method_class: Any) -> Protocol:
    """The benchmark's defaults, then the protocol's, then what the command asked for."""
    scale = benchmark.scales[settings.scale]
    values: dict[str, Any] = {
        "backbone": benchmark.backbone or backbone.DEFAULT_BACKBONE,
        "image_size": benchmark.image_size,
        "epochs": scale.epochs,
        "batch_size": scale.batch_size,
        "augmentation": benchmark.augmentation,
        "precision": settings.precision,
    }
    if settings.protocol == "paper":
        values |= PAPER
        values |= method_class.paper(benchmark.name)
    asked = {"backbone": settings.backbone, "image_size": settings.image_size}
    values |= {name: value for name, value in asked.items() if value is not None}
    return make_protocol(values | settings.protocol_options)


def device_of(settings: Settings) -> Device:
    """The device kind a grid runs on. Of a cluster's GPUs this machine need not have any."""
    if settings.executor == "ray" and settings.device == "cuda":
        return "cuda"
    return pick_device(settings.device)


def pick_device(asked: str) -> Device:
    """The device kind to run on.

    Raises:
        UsageError: if CUDA is asked for and there is none.
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if asked == "cuda" else "cpu"


@cache
def open_benchmark(name: str, options: Sequence[tuple[str, Any]]) -> Benchmark[Any]:
    """The benchmark `name` with its options set; its data are not looked for yet."""
    cls = BENCHMARKS[name].load()
    benchmark: Benchmark[Any] = cls(make_hyper(name, cls.Options, dict(options)))
    return benchmark


@cache
def open_source(name: str, options: Sequence[tuple[str, Any]], roots: tuple[Path, ...]) -> Source:
    """The benchmark's data, opened once a process."""
    return open_benchmark(name, options).open(roots)


def split_of(cell: Cell, places: Places) -> Split:
    """Which images a cell trains and is tested on."""
    name, options = cell.benchmark.name, cell.benchmark.frozen_options
    return make_split(
        open_source(name, options, places.roots),
        tasks=cell.tasks,
        seed=cell.seed,
        scale=open_benchmark(name, options).scales[cell.scale],
        eval_on=cell.eval_on,
    )


def images_of(cell: Cell, places: Places) -> Arrays:
    """A cell's images, decoded. The last ones are kept: cells that share them follow each other.

    Raises:
        UsageError: naming every image that cannot be decoded.
    """
    return _images(cell.without_method(), places)


@lru_cache(maxsize=1)
def _images(cell: Cell, places: Places) -> Arrays:
    name, options = cell.benchmark.name, cell.benchmark.frozen_options
    return load_arrays(
        open_source(name, options, places.roots),
        split_of(cell, places),
        cell.protocol.image_size,
        open_benchmark(name, options).eval_crop,
    )


def check_images(planned: Sequence[Planned], places: Places) -> None:
    """Decode what the cells will use, so that a broken image shows before training starts."""
    for cell in dict.fromkeys(item.cell.without_method() for item in planned if item.missing is None):
        _images(cell, places)


@cache
def find_backbone(tag: str, weights: str | None, roots: tuple[Path, ...]) -> backbone.Backbone:
    """The backbone's weights, found and hashed once a process."""
    return backbone.resolve(tag, weights, roots)


@cache
def check_backbone(found: backbone.Backbone, image_size: int) -> None:
    """Build the backbone once: wrong weights and sizes show before any work is done."""
    backbone.build(found, image_size)


def unfinished(planned: Sequence[Planned], statuses: Mapping[str, str], rerun: str) -> Iterator[Planned]:
    """The cells this command still has to run.

    Args:
        statuses: by cell id, for the cells that have a record; `DAMAGED` for one that cannot be read.
        rerun: "missing" runs what is not done, "failed" what was tried and is not done, "all" everything.
            A damaged record is overwritten by the last two only.
    """
    for item in planned:
        status = statuses.get(item.cell.id)
        missing, failed = status not in ("done", DAMAGED), status not in (None, "done")
        wanted = {"all": True, "missing": missing, "failed": failed}
        if wanted[rerun]:
            yield item
