"""Planning a grid: resolves the settings of a command to cells, and checks them before any work is done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from bench.benchmarks.base import Benchmark
from bench.benchmarks.splits import ORDERS, listed_order
from bench.cell import backbone
from bench.cell.inputs import Inputs, as_text
from bench.cell.one_class import warn_of_one_class
from bench.cell.steps import check_images, small_batches
from bench.model import Scenario
from bench.options import read_options
from bench.record import Record
from bench.spec import (
    PAPER,
    Cell,
    Choice,
    Component,
    Device,
    Protocol,
    Settings,
    label_of,
    make_protocol,
)
from methods.errors import MissingError, UsageError, abbreviate
from methods.hyper import as_plain, fields_of, make_hyper
from methods.registry import METHODS

#: In place of the status of a record that cannot be read.
DAMAGED = "damaged"
#: Parts of a cell's configuration that follow from its data.
FROM_DATA = ("data_sha256", "split_sha256", "task_sizes", "class_order", "domains", "places")
NO_PLACES: Mapping[str, str] = {}


@dataclass(frozen=True)
class PlannedCell:
    """A cell that is planned.

    Attributes:
        missing: the reason why it cannot be run on this machine, if there is one.
        caution: what a user should know of its training before it starts, if there is anything.
    """

    cell: Cell
    missing: str | None = None
    caution: str | None = None


def plan(settings: Settings, device: Device, inputs: Inputs, *, skip_missing: bool) -> list[PlannedCell]:
    """The cells of a grid: by benchmark, then seed, then method, so that paired cells run together.

    Args:
        skip_missing: plan cells whose data or weights are missing as skipped, instead of raising.

    Raises:
        MissingError: for data or weights that are not on this machine, unless `skip_missing`.
        UsageError: for anything else that cannot be run with these settings.
    """
    outlines = (
        _outline(settings, device, inputs, benchmark, method, seed)
        for benchmark in settings.benchmarks
        for seed in settings.seeds
        for method in settings.methods
    )
    planned = [_planned(cell, inputs, _order_file(settings), skip_missing) for cell in outlines]
    _refuse_duplicates(planned)
    return planned


def _refuse_duplicates(planned: Sequence[PlannedCell]) -> None:
    """Refuse two names of one configuration, such as `ncm` and `ncm:metric=euclidean`, its default."""
    cells = [item.cell.id for item in planned]
    duplicates = sorted({cell for cell in cells if cells.count(cell) > 1})
    if duplicates:
        raise UsageError(
            f"the grid has the same cell twice: {duplicates[0]}; two names resolve to the same configuration "
            "(an option set to its default is not a variant), or two folders hold the same images; remove one"
        )


def _planned(outline: Cell, inputs: Inputs, order_file: Path | None, skip_missing: bool) -> PlannedCell:
    try:
        cell = _completed(outline, inputs, order_file)
        return PlannedCell(cell, caution=small_batches(cell, inputs))
    except MissingError as error:
        if not skip_missing:
            raise
        return PlannedCell(outline, str(error))


def _outline(
    settings: Settings, device: Device, inputs: Inputs, benchmark: Choice, method: Choice, seed: int
) -> Cell:
    """A cell without the fields that depend on its data and weights."""
    opened = inputs.benchmark_of(benchmark)
    method_class = METHODS[method.name].load()
    recipe = method_class.paper_options(benchmark.name) if settings.protocol == "paper" else {}
    options = read_options(method.options, fields_of(method_class.Hyper))
    hyper = make_hyper(method.name, method_class.Hyper, {**recipe, **options})
    scenario = _scenario(settings, opened)
    tasks = settings.tasks or _default_tasks(scenario, opened, inputs)
    method_class.check(hyper, tasks)
    places = _places(opened.options)
    return Cell(
        method=_component(method, hyper, recipe),
        benchmark=_component(benchmark, opened.options, {}, places),
        seed=seed,
        scale=settings.scale,
        eval_on=settings.eval_on,
        device=device,
        tasks=tasks,
        task_sizes=None,
        class_order=None,
        split_sha256=None,
        backbone_sha256=None,
        protocol=protocol_of(settings, opened, method_class),
        places=tuple(places),
        scenario=scenario,
    )


def _scenario(settings: Settings, benchmark: Benchmark[Any]) -> Scenario:
    """The scenario that the command asks for, or the benchmark's own.

    Raises:
        UsageError: if the benchmark does not offer it.
    """
    if settings.scenario is None:
        return benchmark.scenarios[0]
    if settings.scenario not in benchmark.scenarios:
        raise UsageError(
            f"{benchmark.name} has no {settings.scenario} stream; legal for it: "
            f"{', '.join(benchmark.scenarios)}; `python -m bench list` shows the scenarios of all benchmarks"
        )
    return settings.scenario


def _default_tasks(scenario: Scenario, benchmark: Benchmark[Any], inputs: Inputs) -> int:
    if scenario == "domain-incremental":
        return benchmark.count_domains(inputs.paths.roots)
    return benchmark.default_tasks


def _places(options: Any) -> dict[str, str]:
    """The options that say where files are, by the last part of the path: the name that people know it by."""
    paths = {name: getattr(options, name) for name in as_plain(options)}
    return {name: _last_part(path) for name, path in paths.items() if isinstance(path, Path)}


def _last_part(path: Path) -> str:
    return path.resolve().name if path.name in ("", "..") else path.name


def _component(
    choice: Choice, resolved: Any, recipe: Mapping[str, Any], places: Mapping[str, str] = NO_PLACES
) -> Component:
    """The component with resolved options; its label has those that are not defaults, and no whole path."""
    options, defaults = as_plain(resolved), {**_defaults(type(resolved)), **recipe}
    changed = {k: v for k, v in options.items() if k not in defaults or v != defaults[k]}
    label = label_of(choice.name, {**changed, **places})
    return Component(name=choice.name, label=label, options=options)


def _defaults(cls: type[Any]) -> dict[str, Any]:
    fields: Mapping[str, Any] = cls.__pydantic_fields__
    return {
        name: to_jsonable_python(field.get_default())
        for name, field in fields.items()
        if not field.is_required()
    }


def _completed(cell: Cell, inputs: Inputs, order_file: Path | None) -> Cell:
    """Add the fields that depend on data and weights: the split, the orders, the hashes."""
    if cell.protocol.class_order == "listed":
        cell = cell.model_copy(update=_listed(cell, inputs, order_file))
    split, weights = inputs.split(cell), inputs.backbone(cell)
    check_images(cell, split)
    domains = inputs.dataset(cell).domains
    return cell.model_copy(
        update={
            "task_sizes": split.task_sizes,
            "class_order": split.class_order,
            "domains": tuple(as_text(domains[number]) for number in split.domain_order) or None,
            "split_sha256": split.sha256,
            "data_sha256": None if inputs.benchmark(cell).pinned else inputs.data_sha256(cell),
            "backbone_sha256": weights.sha256,
        }
    )


def _listed(cell: Cell, inputs: Inputs, order_file: Path | None) -> dict[str, Any]:
    """The field of the cell that a list of classes or of domains determines."""
    what = "domains" if cell.scenario == "domain-incremental" else "classes"
    if order_file is None:
        raise UsageError(
            f"protocol.class_order=listed needs the list: give --class-order FILE, a text file with the name "
            f"of one of the {what} per line"
        )
    names = inputs.what_comes(cell)
    order = listed_order(names, order_file, cell.seed, what)
    if cell.scenario == "domain-incremental":
        return {"domains": tuple(as_text(names[number]) for number in order)}
    return {"class_order": order}


def _order_file(settings: Settings) -> Path | None:
    """The file that `--class-order` names, unless it names a rule."""
    named = settings.class_order
    return None if named is None or named in ORDERS else Path(named)


def protocol_of(settings: Settings, benchmark: Benchmark[Any], method_class: Any) -> Protocol:
    """The defaults of the benchmark, overridden by the recipe, overridden by the command."""
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
        values |= _scaled(method_class.paper(benchmark.name), scale.epochs, benchmark.scales["full"].epochs)
    order = "listed" if _order_file(settings) else settings.class_order
    requested = {"backbone": settings.backbone, "image_size": settings.image_size, "class_order": order}
    values |= {name: value for name, value in requested.items() if value is not None}
    chosen = values | settings.protocol_options
    if not backbone.is_from_jax(str(chosen["backbone"])) and "gelu" not in settings.protocol_options:
        chosen.pop("gelu", None)  # the recipe's, for weights that were trained with it
    return make_protocol(chosen)


def _scaled(recipe: Mapping[str, Any], epochs: int, full: int) -> dict[str, Any]:
    """A published recipe at a scale: its epochs in the ratio of the benchmark's own to those of `full`.

    Rounded up, so that at least one epoch is left.
    """
    if "epochs" not in recipe:
        return dict(recipe)
    return {**recipe, "epochs": -(-recipe["epochs"] * epochs // full)}


def resolve_device(requested: str, remote: bool) -> Device:
    """The device kind that a grid runs on.

    Args:
        requested: "cpu", "cuda" or "auto".
        remote: whether cells may run on other machines, so that CUDA need not be available here.

    Raises:
        UsageError: if CUDA is requested, is needed here, and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if requested == "auto":
        return "cuda" if available else "cpu"
    if requested == "cuda" and not (available or remote):
        raise UsageError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    return "cuda" if requested == "cuda" else "cpu"


def check_backbones(planned: Sequence[PlannedCell], inputs: Inputs) -> None:
    """Open the backbones of all cells and attach their methods, so that one that does not fit is reported
    before training starts.

    Raises:
        UsageError: if weights, an image size or a method do not suit a backbone.
    """
    from bench.cell.suitability import check_cells

    check_cells([item.cell for item in planned if item.missing is None], inputs.build_backbone)


def cells_to_run(
    planned: Sequence[PlannedCell], statuses: Mapping[str, str], rerun: str
) -> Iterator[PlannedCell]:
    """The cells this command still has to run.

    Args:
        statuses: by cell id, for the cells that have a record; `DAMAGED` for one that cannot be read.
        rerun: "missing" selects cells that are not done, "failed" cells that have a record and are not done,
            "all" every cell. A cell with a damaged record is selected by the last two only.
    """
    for item in planned:
        status = statuses.get(item.cell.id)
        missing, failed = status not in ("done", DAMAGED), status not in (None, "done")
        selected = {"all": True, "missing": missing, "failed": failed}
        if selected[rerun]:
            yield item


def notes_on_data(planned: Sequence[PlannedCell], inputs: Inputs) -> list[str]:
    """What is to be known about the images of each benchmark before it is run; see `Inputs.notes`."""
    cells = [item.cell for item in planned if item.missing is None]
    notes = [f"{cell.benchmark.label}: {note}" for cell in cells for note in inputs.notes(cell)]
    return list(dict.fromkeys(notes))


def notes_on_scenarios(planned: Sequence[PlannedCell]) -> list[str]:
    """A sentence for each benchmark whose tasks are domains."""
    cells = [item.cell for item in planned if item.cell.domains]
    return list(
        dict.fromkeys(
            f"{cell.benchmark.label}: a domain-incremental stream, a task for each of {cell.tasks} domains "
            f"({abbreviate(sorted(cell.domains or ()))})"
            for cell in cells
        )
    )


def notes_on_tasks(planned: Sequence[PlannedCell]) -> list[str]:
    """What is to be known about the tasks of each benchmark before a run, with the methods concerned."""
    methods: dict[str, dict[str, None]] = {}
    for cell in (item.cell for item in planned):
        for warning in warn_of_one_class(cell):
            methods.setdefault(f"{cell.benchmark.label}: {warning}", {})[cell.method.label] = None
    return [f"warning: {warning} ({', '.join(names)})" for warning, names in methods.items()]


def changed_data(cells: Iterable[Cell], records: Iterable[Record]) -> list[str]:
    """A sentence for each benchmark whose images are not those of records that are equal in all else.

    Args:
        cells: without a record.
        records: of other cells.
    """
    by_setting: dict[str, list[Record]] = {}
    for record in records:
        by_setting.setdefault(_setting(record.config), []).append(record)
    found: dict[tuple[str, str], int] = {}
    for cell in cells:
        for record in by_setting.get(_setting(cell.model_dump(mode="json")), ()):
            if change := _change(cell, record):
                found[cell.benchmark.label, change] = found.get((cell.benchmark.label, change), 0) + 1
    return [_change_notice(benchmark, change, number) for (benchmark, change), number in found.items()]


def _setting(config: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in FROM_DATA}, sort_keys=True)


def _change(cell: Cell, record: Record) -> str | None:
    """What has changed in the images since a record; None if nothing has, or one of the two has seen none."""
    now, then = cell.data_sha256, record.manifest.data_sha256
    if now is None or then is None or (now, cell.split_sha256) == (then, record.manifest.split_sha256):
        return None
    hashes = f"sha256 {then[:12]} then, {now[:12]} now"
    if now == then:
        return "the same images are divided otherwise"
    if cell.split_sha256 != record.manifest.split_sha256:
        return f"images were added, removed, renamed or moved; {hashes}"
    if cell.scale == "full":
        return f"same names, other content; {hashes}"
    return f"same names, other content, or changes among the images that this scale leaves out; {hashes}"


def _change_notice(benchmark: str, change: str, number: int) -> str:
    records = "1 record was" if number == 1 else f"{number} records were"
    return (
        f"the images of {benchmark} have changed since {records} made ({change}): these cells are run from "
        "the start, and the older records and checkpoints stay beside them"
    )
