"""One cell, from its configuration to its record."""

from __future__ import annotations

import copy
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bench import backbone, checkpoint, record
from bench.costs import Cost, Parameters, PeakMemory
from bench.manifest import manifest_of, now
from bench.metrics import accuracy_matrix, compute_all
from bench.plan import Places, Planned, find_backbone, images_of, open_benchmark, split_of
from bench.progress import Observe, Tick
from bench.spec import Cell
from methods.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.batches import Pipeline
    from bench.probes.memory import Highest
    from bench.probes.sizes import Size
    from bench.probes.training import Phases
    from bench.strategy import Strategy

TRACEBACK_NAME = "traceback.txt"
EVAL_BATCH = 128
TICK_SECONDS = 0.2


@dataclass(frozen=True)
class Spent:
    """What one experience took, and how large it left the method; see `bench.costs.Cost`."""

    train_seconds: float
    phases: Phases
    energy: float | None
    eval_seconds: float | None
    trainable: int
    stored: Size
    deployed: Size
    flops: int


@dataclass
class Outcome:
    """What a cell has measured so far; an experience adds one entry to each list.

    `meanings` are the sentences on the names in `diagnostics`; `memory` is the peak of all trainings.
    """

    counts: list[int] = field(default_factory=list)
    correct: list[list[int | None]] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    diagnostics: list[Mapping[str, record.DiagnosticValue]] = field(default_factory=list)
    meanings: Mapping[str, str] = field(default_factory=dict)
    memory: PeakMemory | None = None
    plain_flops: int | None = None


def run_cell(planned: Planned, places: Places, command: str | None, observe: Observe) -> record.Record:
    """Run a cell and return its record, whatever happens; a cell's fault stays the cell's.

    KeyboardInterrupt alone is passed on, once the record of the interrupted cell is on disk.
    """
    started, folder = now(), places.results / planned.cell.id
    (folder / TRACEBACK_NAME).unlink(missing_ok=True)
    checkpoint.forget(folder)
    if planned.missing is not None:
        return _finish(planned.cell, places, command, started, "skipped", planned.missing)
    try:
        results = _results(learn(planned.cell, places, observe))
    except KeyboardInterrupt:
        _finish(planned.cell, places, command, started, "interrupted", "stopped by Ctrl-C")
        raise
    except Exception as error:  # the boundary of a cell: the rest of the grid goes on
        status = _status_of(error)
        made = _finish(planned.cell, places, command, started, status, _reason(error))
        (places.results / planned.cell.id / TRACEBACK_NAME).write_text(traceback.format_exc())
        return made
    try:
        return _finish(planned.cell, places, command, started, "done", None, results)
    except OSError:  # a full disk: without a record the states are of no use
        checkpoint.forget(folder)
        raise


def record_of_death(cell: Cell, places: Places, command: str | None, reason: str) -> record.Record:
    """Record a cell whose process ended without a word."""
    return _finish(cell, places, command, now(), "failed", reason)


def learn(cell: Cell, places: Places, observe: Observe) -> Outcome:
    """Train and evaluate, experience by experience.

    The heavy imports are here and in what is called from here: listing and reporting need none of them.
    """
    import torch

    from bench.probes.memory import Highest
    from bench.stream import experiences, union

    split, arrays = split_of(cell, places), images_of(cell, places)
    assert split.sha256 == cell.split_sha256, "the data changed between planning and running"
    memory = Highest(torch.device(cell.device))
    strategy, method = assemble(cell, places, observe)
    outcome = Outcome(counts=_counts(arrays.test_y, split.task_sizes), meanings=method.describes)
    stream = experiences(arrays.train_x, arrays.train_y, split.task_sizes)
    for task, experience in enumerate(stream):
        with memory.watching():
            trained = _train(strategy, experience)
        seen = union(arrays.test_x, arrays.test_y, sum(split.task_sizes[: task + 1]))
        evaluated = not method.waits_for_all or task == len(stream) - 1
        if evaluated:
            observe(Tick("evaluating", task + 1, len(stream)))
        seconds = _timed(strategy, lambda e=seen: strategy.eval([e])) if evaluated else None
        unknown: list[int | None] = [None] * len(stream)
        outcome.correct.append(_row(strategy, split.task_sizes, task) if evaluated else unknown)
        outcome.diagnostics.append(method.diagnostics())
        outcome.spent.append(_spent(strategy, method, trained, seconds, cell.protocol.image_size))
        if evaluated and task in (0, len(stream) - 1):
            checkpoint.save(method.state(), places.results / cell.id, task + 1)
    outcome.memory = _training_memory(memory)
    outcome.plain_flops = _plain_flops(cell, places)
    return outcome


def assemble(cell: Cell, places: Places, observe: Observe) -> tuple[Strategy, Any]:
    """The strategy of a cell, with its backbone, its method and its data pipeline plugged in."""
    from bench.batches import AUGMENTATIONS, clean
    from bench.probes.training import Witness
    from bench.rng import generator, seed_everything
    from bench.strategy import SCHEDULES, FiniteLoss, Predictions, Schedule, Strategy, Watch
    from methods.registry import METHODS

    protocol = cell.protocol
    found = find_backbone(protocol.backbone, places.weights, places.roots)
    pipeline = pipeline_of(cell, found)
    seed_everything(cell.seed)  # random weights, where they are asked for
    model = backbone.build(found, protocol.image_size).to(pipeline.device)
    seed_everything(cell.seed)  # building drew random numbers; the method's own start afresh
    method = METHODS[cell.method.name].load()(head_init=protocol.head_init, **cell.method.options)
    augment = AUGMENTATIONS[protocol.augmentation]
    strategy = Strategy(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_collate=augment(pipeline, generator(cell.seed, "augmentation")),
        eval_collate=clean(pipeline),
        look_collate=augment(pipeline, generator(cell.seed, "statistics")),
        order=generator(cell.seed, "data order"),
        precision=protocol.precision,
        train_mb_size=protocol.batch_size,
        train_epochs=protocol.epochs,
        eval_mb_size=EVAL_BATCH,
        device=pipeline.device,
        plugins=[
            Witness(),
            method,
            Witness(),
            Schedule(SCHEDULES[protocol.schedule]),
            FiniteLoss(),
            Predictions(),
            Watch(observe, cell.tasks, TICK_SECONDS),
        ],
    )
    return strategy, method


def pipeline_of(cell: Cell, found: backbone.Backbone) -> Pipeline:
    """How the cell's images become the model's input."""
    import torch

    from bench.batches import Pipeline

    benchmark = open_benchmark(cell.benchmark.name, cell.benchmark.frozen_options)
    unit = cell.protocol.normalisation == "unit"
    return Pipeline(
        size=cell.protocol.image_size,
        crop=benchmark.eval_crop,
        mean=(0.0, 0.0, 0.0) if unit else found.mean,
        std=(1.0, 1.0, 1.0) if unit else found.std,
        device=torch.device(cell.device),
    )


def _train(strategy: Strategy, experience: Any) -> tuple[float, Phases, float | None]:
    """Learn an experience: its seconds, the method's share of them, the joules."""
    from bench.probes.energy import counter_of
    from bench.probes.training import phases_of

    drawn = counter_of(strategy.device)
    before = drawn() if drawn else None
    seconds = _timed(strategy, lambda: strategy.train(experience))
    energy = drawn() - before if drawn and before is not None else None
    return seconds, phases_of(strategy), energy


def _timed(strategy: Strategy, work: Any) -> float:
    """Seconds of `work`, the device's queue included."""
    import torch

    start = time.perf_counter()
    work()
    if strategy.device.type == "cuda":
        torch.cuda.synchronize(strategy.device)
    return time.perf_counter() - start


def _spent(
    strategy: Strategy,
    method: Any,
    trained: tuple[float, Phases, float | None],
    eval_seconds: float | None,
    image_size: int,
) -> Spent:
    """What an experience took, and what the method has become; `strategy` is left as it is."""
    from bench.probes.flops import flops_of
    from bench.probes.sizes import size_of

    seconds, phases, energy = trained
    deployed = deployed_copy(strategy, method)
    return Spent(
        train_seconds=seconds,
        phases=phases,
        energy=energy,
        eval_seconds=eval_seconds,
        trainable=sum(p.numel() for group in strategy.optimizer.param_groups for p in group["params"]),
        stored=size_of(method.state().values()),
        deployed=size_of(deployed.state_dict().values()),
        flops=flops_of(deployed, images_like(1, image_size, strategy.device)),
    )


def deployed_copy(strategy: Strategy, method: Any) -> Any:
    """The model in eval mode, merged as one would to deploy it; the strategy's own is left alone."""
    model = copy.deepcopy(strategy.model).eval()
    method.merge(model)
    return model


def images_like(batch: int, image_size: int, device: torch.device) -> Tensor:
    """Noise (batch, 3, S, S) as normalised images would be; always the same."""
    import torch

    noise = torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return noise.to(device)


def _training_memory(memory: Highest) -> PeakMemory | None:
    return PeakMemory(kind=memory.meter.kind, training=memory.found) if memory.meter else None


def plain_vit(cell: Cell, places: Places) -> Any:
    """timm's ViT with a classifier for all classes, on the cell's device: what methods are compared to."""
    found = find_backbone(cell.protocol.backbone, places.weights, places.roots)
    model = backbone.build(found, cell.protocol.image_size)
    model.reset_classifier(len(cell.class_order or ()))
    return model.to(cell.device).eval()


def _plain_flops(cell: Cell, places: Places) -> int:
    import torch

    from bench.probes.flops import flops_of

    images = images_like(1, cell.protocol.image_size, torch.device(cell.device))
    return flops_of(plain_vit(cell, places), images)


def _counts(labels: Any, task_sizes: Sequence[int]) -> list[int]:
    from bench.stream import rows_by_task

    return [len(rows) for rows in rows_by_task(labels.tolist(), task_sizes)]


def _row(strategy: Strategy, task_sizes: Sequence[int], task: int) -> list[int | None]:
    """Correct predictions of each task's test images after `task`; null for tasks still to come."""
    from bench.stream import rows_by_task

    predicted, true = strategy.predictions()
    hits = (predicted == true).tolist()
    rows = rows_by_task(true.tolist(), task_sizes)
    return [sum(hits[row] for row in rows[j]) if j <= task else None for j in range(len(task_sizes))]


def _status_of(error: Exception) -> record.Status:
    import torch

    from bench.strategy import DivergedError

    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "oom"
    return "failed"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _finish(
    cell: Cell,
    places: Places,
    command: str | None,
    started: str,
    status: record.Status,
    reason: str | None,
    results: Mapping[str, Any] | None = None,
) -> record.Record:
    made = record.Record(
        schema=record.SCHEMA,
        status=status,
        reason=reason,
        method=cell.method.label,
        benchmark=cell.benchmark.label,
        seed=cell.seed,
        tasks=cell.tasks,
        config=cell.model_dump(mode="json"),
        class_order=cell.class_order,
        manifest=manifest_of(cell, places, command, started),
        **(results or {}),
    )
    if status != "done":
        checkpoint.forget(places.results / cell.id)
    if status == "interrupted" and _is_done(places.results / cell.id / record.RECORD_NAME):
        return made  # an interrupted repetition takes nothing away
    record.write(made, places.results / cell.id)
    if status != "skipped":  # what it was recorded as while its data were missing is out of date
        shutil.rmtree(places.results / cell.without_data().id, ignore_errors=True)
    return made


def _is_done(path: Path) -> bool:
    return path.exists() and record.read(path).done


def _results(outcome: Outcome) -> dict[str, Any]:
    """What the record of a finished cell holds, and no other.

    Raises:
        UsageError: if what the method tells of itself cannot be recorded.
    """
    return {
        "correct": outcome.correct,
        "counts": outcome.counts,
        "accuracy_matrix": accuracy_matrix(outcome.correct, outcome.counts),
        "metrics": compute_all(outcome.correct, outcome.counts),
        "diagnostics": _diagnostics(outcome),
        "cost": _cost(outcome),
    }


def _diagnostics(outcome: Outcome) -> dict[str, record.Diagnostic] | None:
    """Each name's entries in a row, null where an experience lacks it; None if there is nothing to say."""
    names = sorted({name for entry in outcome.diagnostics for name in entry})
    return {name: _diagnostic(name, outcome) for name in names} or None


def _diagnostic(name: str, outcome: Outcome) -> record.Diagnostic:
    if name not in outcome.meanings:
        raise UsageError(
            f"diagnostics() of the method returns '{name}', which its `describes` does not explain; "
            "add a sentence on it there"
        )
    try:
        values = [entry.get(name) for entry in outcome.diagnostics]
        return record.Diagnostic(meaning=outcome.meanings[name], values=values)
    except ValidationError as error:
        raise UsageError(
            f"diagnostics() of the method returns '{name}' in a form that cannot be recorded "
            f"({record.complaint(error)}); return a finite number, a list with one for each block, a table "
            "with a line for each experience tested, or None"
        ) from None


def _cost(outcome: Outcome) -> Cost:
    spent = outcome.spent
    energy = [one.energy for one in spent]
    return Cost(
        train_seconds=[one.train_seconds for one in spent],
        prepare_seconds=[one.phases.prepare for one in spent],
        consolidate_seconds=[one.phases.consolidate for one in spent],
        train_images=[one.phases.images for one in spent],
        eval_seconds=[one.eval_seconds for one in spent],
        energy_joules=None if None in energy else energy,
        peak_memory=outcome.memory,
        flops=[one.flops for one in spent],
        plain_flops=outcome.plain_flops,
        parameters=Parameters(
            trainable=[one.trainable for one in spent],
            stored=[one.stored.elements for one in spent],
            deployed=[one.deployed.elements for one in spent],
            stored_bytes=[one.stored.bytes for one in spent],
            deployed_bytes=[one.deployed.bytes for one in spent],
        ),
    )
