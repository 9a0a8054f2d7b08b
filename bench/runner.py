"""One cell, from its configuration to its record."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import backbone, checkpoint, record
from bench.costs import Cost, PeakMemory
from bench.manifest import Circumstances, manifest_of, now
from bench.plan import Places, Planned, find_backbone, images_of, open_benchmark, split_of
from bench.progress import Observe, Tick
from bench.spec import Cell
from bench.storage import StorageError
from methods.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.batches import Pipeline
    from bench.outcome import Outcome, Spent
    from bench.probes.memory import Highest
    from bench.probes.training import Phases
    from bench.resume import Made
    from bench.strategy import Strategy

EVAL_BATCH = 128
TICK_SECONDS = 0.2

#: What torch says where it has no class of error for it.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


class CellMemoryError(RuntimeError):
    """Memory ran out. The message has the batch size and the peak; `peak` is for the record."""

    def __init__(self, message: str, peak: PeakMemory | None) -> None:
        super().__init__(message)
        self.peak = peak


@dataclass(frozen=True)
class Ended:
    """How a cell ended: its record, and the traceback of what stopped it."""

    record: record.Record
    traceback: str | None = None


def run_cell(planned: Planned, places: Places, how: Circumstances, observe: Observe) -> Ended:
    """Run a cell, from its last state where it has one, and return its record; whatever happens.

    A cell's fault stays the cell's. What it has learnt is in its folder, to go on from; nothing else is
    written.

    Raises:
        StorageError: if its state cannot be written, which is no fault of the cell.
    """
    cell, started = planned.cell, now()
    if planned.missing is not None:
        return Ended(record_of(cell, places, how, started, "skipped", planned.missing))
    try:
        outcome = learn(cell, places, started, observe)
        from bench.outcome import results_of

        results = results_of(outcome)
    except KeyboardInterrupt:
        return Ended(
            record_of(cell, places, how, started, "interrupted", f"stopped{kept_until(cell, places)}")
        )
    except StorageError:
        raise
    except Exception as error:  # the boundary of a cell: the rest of the grid goes on
        return Ended(_record_of_error(cell, places, how, started, error), traceback.format_exc())
    manifest = manifest_of(cell, places, how, outcome.started, outcome.resumed)
    return Ended(_record(cell, manifest, "done", None, results))


def kept_until(cell: Cell, places: Places) -> str:
    """Where a cell goes on that is taken up again, to be added to a sentence."""
    last = max(checkpoint.kept(places.results / cell.id), default=0)
    return f"; its state after experience {last} of {cell.tasks} is kept" if last else ""


def learn(cell: Cell, places: Places, started: str, observe: Observe) -> Outcome:
    """Train and evaluate, experience by experience, those that are not over yet.

    The heavy imports are here and in what is called from here: listing and reporting need none of them.
    """
    import torch

    from bench import resume
    from bench.probes.memory import Highest
    from bench.stream import experiences, union

    split, arrays, folder = split_of(cell, places), images_of(cell, places), places.results / cell.id
    _check_unchanged("split of the data", split.sha256, cell.split_sha256)
    memory = Highest(torch.device(cell.device))
    with _explaining_memory(cell, memory):
        made = assemble(cell, places, observe)
        fresh = _nothing_yet(made, started, _counts(arrays.test_y, split.task_sizes))
        outcome = resume.pick_up(made, cell, folder, observe) or fresh
        stream = experiences(arrays.train_x, arrays.train_y, split.task_sizes)
        for task in range(len(outcome.spent), len(stream)):
            seen = union(arrays.test_x, arrays.test_y, sum(split.task_sizes[: task + 1]))
            _learn_one(made, cell, stream[task], seen, memory, outcome, observe)
            if _is_evaluated(made, cell, task):  # one that waits has learnt nothing to go on from
                resume.save(made, cell, folder, outcome)
        outcome.plain_flops = _plain_flops(cell, places)
    return outcome


def _nothing_yet(made: Made, started: str, counts: list[int]) -> Outcome:
    from bench.outcome import Outcome

    return Outcome(started, counts, meanings=made.method.describes)


def _is_evaluated(made: Made, cell: Cell, task: int) -> bool:
    return not made.method.waits_for_all or task == cell.tasks - 1


def _learn_one(
    made: Made, cell: Cell, experience: Any, seen: Any, memory: Highest, outcome: Outcome, observe: Observe
) -> None:
    """Learn an experience, evaluate on all that was seen so far, and add what was measured to the outcome."""
    from bench.outcome import higher

    strategy, method, task = made.strategy, made.method, len(outcome.spent)
    with memory.watching():
        trained = _train(strategy, experience)
    seconds: float | None = None
    row: list[int | None] = [None] * cell.tasks
    if _is_evaluated(made, cell, task):
        observe(Tick("evaluating", task + 1, cell.tasks))
        seconds = _timed(strategy, lambda: strategy.eval([seen]))
        row = _row(strategy, cell.task_sizes or (), task)
    outcome.correct.append(row)
    outcome.diagnostics.append(method.diagnostics())
    outcome.spent.append(_spent(strategy, method, trained, seconds, cell.protocol.image_size))
    outcome.memory = higher(outcome.memory, _training_memory(memory))


def _check_unchanged(what: str, found: str, planned: str | None) -> None:
    if found != planned:
        raise UsageError(
            f"the {what} has sha256 {found}, and {planned} when the grid was planned; every machine that "
            "runs cells needs the same files, and they must not change meanwhile"
        )


@contextmanager
def _explaining_memory(cell: Cell, memory: Highest) -> Iterator[None]:
    """Add to an error for want of memory the batch size and the peak."""
    try:
        yield
    except Exception as error:
        if not _is_for_memory(error):
            raise
        peak = _peak_so_far(memory)
        at = ""
        if peak is not None and peak.training is not None:
            at = f"{peak.training.peak / 2**20:.0f} MiB in use at the highest point ({peak.kind}), "
        raise CellMemoryError(
            f"out of memory with {at}a batch of {cell.protocol.batch_size} images in training and "
            f"{EVAL_BATCH} in evaluation: {_reason(error)}",
            peak,
        ) from error


def _peak_so_far(memory: Highest) -> PeakMemory | None:
    if memory.meter is None:
        return None
    return PeakMemory(kind=memory.meter.kind, training=memory.meter.highest(memory.baseline))


def _is_for_memory(error: Exception) -> bool:
    import errno

    import torch

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def assemble(cell: Cell, places: Places, observe: Observe) -> Made:
    """The strategy of a cell, with its backbone, its method and its data pipeline plugged in."""
    from bench.batches import AUGMENTATIONS, clean
    from bench.probes.training import Witness
    from bench.resume import Made
    from bench.rng import generator, seed_everything
    from bench.strategy import SCHEDULES, FiniteLoss, Predictions, Schedule, Strategy, Watch
    from methods.registry import METHODS

    protocol = cell.protocol
    found = find_backbone(protocol.backbone, places.weights, places.roots)
    _check_unchanged(f"file with the weights of {found.tag}", found.sha256, cell.backbone_sha256)
    pipeline = pipeline_of(cell, found)
    streams = {use: generator(cell.seed, use) for use in ("augmentation", "statistics", "data order")}
    seed_everything(cell.seed)  # random weights, where they are asked for
    model = backbone.build(found, protocol.image_size).to(pipeline.device)
    seed_everything(cell.seed)  # building drew random numbers; the method's own start afresh
    method = METHODS[cell.method.name].load()(head_init=protocol.head_init, **cell.method.options)
    augment = AUGMENTATIONS[protocol.augmentation]
    strategy = Strategy(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_collate=augment(pipeline, streams["augmentation"]),
        eval_collate=clean(pipeline),
        look_collate=augment(pipeline, streams["statistics"]),
        order=streams["data order"],
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
    return Made(strategy, method, streams)


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
    from bench.outcome import Spent
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


# ---- the record --------------------------------------------------------------------------------


def _record_of_error(
    cell: Cell, places: Places, how: Circumstances, started: str, error: Exception
) -> record.Record:
    reason = str(error) if isinstance(error, CellMemoryError) else _reason(error)
    made = record_of(cell, places, how, started, _status_of(error), reason + kept_until(cell, places))
    peak = error.peak if isinstance(error, CellMemoryError) else None
    return made.model_copy(update={"cost": Cost(peak_memory=peak)}) if peak else made


def _status_of(error: Exception) -> record.Status:
    from bench.strategy import DivergedError

    if isinstance(error, DivergedError):
        return "diverged"
    return "oom" if isinstance(error, CellMemoryError) or _is_for_memory(error) else "failed"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def record_of(
    cell: Cell, places: Places, how: Circumstances, started: str, status: record.Status, reason: str
) -> record.Record:
    """The record of a cell that has no results."""
    return _record(cell, manifest_of(cell, places, how, started), status, reason, {})


def _record(
    cell: Cell,
    manifest: record.Manifest,
    status: record.Status,
    reason: str | None,
    results: Mapping[str, Any],
) -> record.Record:
    return record.Record(
        schema=record.SCHEMA,
        status=status,
        reason=reason,
        method=cell.method.label,
        benchmark=cell.benchmark.label,
        seed=cell.seed,
        tasks=cell.tasks,
        config=cell.model_dump(mode="json"),
        class_order=cell.class_order,
        manifest=manifest,
        **results,
    )
