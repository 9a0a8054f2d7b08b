"""Runs one cell, from its configuration to its record."""

from __future__ import annotations

import copy
import dataclasses
import errno
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench import predictions
from bench.benchmarks.loading import Arrays
from bench.benchmarks.splits import Split
from bench.benchmarks.whole import WholeImages
from bench.cell import backbone, features, resume
from bench.cell.batches import AUGMENTATIONS, CLEAN, Pipeline
from bench.cell.features import Conditions, Features
from bench.cell.inputs import Inputs, Paths
from bench.cell.manifest import RunContext, code_conditions, manifest_of, now
from bench.cell.measurements import Measurements, checked_diagnostics, higher, results_of
from bench.cell.outcome import CellResult, record_of, record_without_results, resume_hint
from bench.cell.placement import images_per_pass, on_device
from bench.cell.progress import Observer, ProgressUpdate
from bench.cell.resume import CellRun
from bench.cell.rng import generator, seed_everything
from bench.cell.strategy import (
    SCHEDULES,
    DivergedError,
    FiniteLogits,
    FiniteLoss,
    PredictionCollector,
    ProgressReporter,
    Schedule,
    Strategy,
)
from bench.cell.stream import EVALUATED, TEST_BATCHES, TestImages, columns_of, experiences, shared
from bench.costs import Cost, ExperienceCost, PeakMemory
from bench.model import Scenario
from bench.predictions import Predictions
from bench.probes.energy import counter_of
from bench.probes.flops import flops_of
from bench.probes.guard import measured
from bench.probes.memory import PeakMemoryTracker
from bench.probes.sizes import size_of
from bench.probes.training import Phases, PhaseTimer, phases_of
from bench.record import Record, Status
from bench.spec import Cell, Protocol
from bench.storage import StorageError
from methods.base import Method
from methods.errors import UsageError
from methods.registry import METHODS

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array

#: Images per evaluation batch, at most.
EVAL_BATCH = 128
PROGRESS_SECONDS = 0.2

#: Messages of RuntimeErrors by which torch says that memory ran out.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


class CellMemoryError(RuntimeError):
    """Memory ran out. The message has the batch sizes and the peak; `peak` is for the record."""

    def __init__(self, message: str, peak: PeakMemory | None) -> None:
        super().__init__(message)
        self.peak = peak


def run_cell(
    cell: Cell,
    paths: Paths,
    context: RunContext,
    observe: Observer,
    save: Callable[[CellRun, Cell, Path, Measurements], None] = resume.save,
) -> CellResult:
    """Run a cell, from its last checkpoint if there is one; an error becomes a record that states it.

    The only files written are checkpoints, in the cell's folder.

    Args:
        save: writes a checkpoint after each task.

    Raises:
        StorageError: if a checkpoint cannot be written, which is not an error of the cell.
    """
    inputs, started = Inputs(paths), now()
    try:
        run, measurements = train_and_evaluate(cell, inputs, started, observe, save)
        results = results_of(measurements) | {"class_names": inputs.class_names(cell)}
        labels = inputs.images(cell).test_y
        predicted = predictions_of(run.predicted, inputs.split(cell), labels, cell.scenario)
        content = predictions.to_bytes(predicted)
    except KeyboardInterrupt:
        reason = f"stopped{resume_hint(cell, paths)}"
        return CellResult(record_without_results(cell, inputs, context, started, "interrupted", reason))
    except StorageError:
        raise
    except Exception as error:  # the boundary of a cell: other cells are not affected
        record = _record_of_error(cell, inputs, context, started, error)
        return CellResult(record, traceback=traceback.format_exc())
    results["predictions"] = predictions.describe_file(content)
    manifest = manifest_of(cell, inputs, context, measurements.started, measurements)
    return CellResult(record_of(cell, manifest, "done", None, results), content)


# ---- training and evaluation -------------------------------------------------------------------------


def train_and_evaluate(
    cell: Cell,
    inputs: Inputs,
    started: str,
    observe: Observer,
    save: Callable[[CellRun, Cell, Path, Measurements], None] = resume.save,
) -> tuple[CellRun, Measurements]:
    """Learn the tasks that the last checkpoint does not have, and evaluate after each of them."""
    arrays, folder = _planned_images(cell, inputs), inputs.paths.results / cell.id
    device = torch.device(cell.device)
    train_x, test_x = (_placed(images, device) for images in (arrays.train_x, arrays.test_x))
    memory = PeakMemoryTracker(device)  # after the images, which are no memory of the method's
    with _explaining_memory(cell, memory):
        kept = keep_features(cell, inputs, observe)  # what it leaves behind is used again, and no baseline
        run = build_run(cell, inputs, observe, kept)
        new = Measurements(
            started,
            counts=[len(rows) for rows in columns_of(arrays.test_experience, cell.tasks)],
            diagnostic_help=run.method.diagnostic_help,
        )
        measurements = resume.resume_from_checkpoint(run, cell, folder, observe) or new
        stream = experiences(train_x, arrays.train_y, arrays.train_experience)
        test_batches = TEST_BATCHES[cell.protocol.test_batches]
        for task in range(measurements.experiences, len(stream)):
            rows = EVALUATED[cell.scenario](arrays.test_experience, task)
            tested = test_batches(test_x, arrays.test_y, arrays.test_experience, rows)
            _run_experience(run, cell, stream[task], tested, arrays, memory, measurements, observe)
            if _is_evaluated(run, cell, task):  # before that, a method that trains jointly has learnt nothing
                save(run, cell, folder, measurements)
        measurements.plain_flops = measured(
            "plain_flops", lambda: _plain_flops(cell, inputs), measurements.unmeasured
        )
    if kept is not None:
        measurements.feature_images, measurements.feature_seconds = kept.passes, kept.seconds
    return run, measurements


def _is_evaluated(run: CellRun, cell: Cell, task: int) -> bool:
    return not run.method.trains_jointly or task == cell.tasks - 1


def _run_experience(
    run: CellRun,
    cell: Cell,
    experience: Any,
    tested: TestImages,
    arrays: Arrays,
    memory: PeakMemoryTracker,
    measurements: Measurements,
    observe: Observer,
) -> None:
    """Learn a task, evaluate on the test images that it asks for, and add the measurements."""
    task, faults = measurements.experiences, measurements.unmeasured
    with memory.track():
        cost = _train(run.strategy, experience, faults)
    if any(plugin.was_zero for plugin in run.strategy.plugins if isinstance(plugin, FiniteLoss)):
        measurements.zero_loss.append(task + 1)
    row: list[int | None] = [None] * len(measurements.counts)
    if _is_evaluated(run, cell, task):
        observe(ProgressUpdate("evaluating", task + 1, cell.tasks))
        cost = cost.model_copy(
            update={"eval_seconds": _seconds(run.strategy, lambda: run.strategy.eval(tested.experiences))}
        )
        predicted = _by_row(run.strategy.predictions()[0], tested.rows)
        run.predicted[task] = predicted.to(torch.int32)
        row = _row(predicted, sorted(tested.rows), arrays, cell.tasks)
    measurements.correct.append(row)
    diagnostics = measured("diagnostics", lambda: checked_diagnostics(run.method.diagnostics()), faults)
    measurements.diagnostics.append(diagnostics or {})
    measurements.costs.append(_with_sizes(cost, run, cell.protocol.image_size, faults))
    measurements.memory = higher(measurements.memory, _training_memory(memory))


def _planned_images(cell: Cell, inputs: Inputs) -> Arrays:
    """The cell's images, which are those that it was planned with.

    Raises:
        UsageError: saying what differs, if they are not.
    """
    name, sha256 = cell.benchmark.label, inputs.split(cell).sha256
    _check_unchanged(f"{name} has other images here, by name or class", sha256, cell.split_sha256)
    arrays = inputs.images(cell)
    if cell.data_sha256 is not None:  # hashed after decoding, so that no change escapes
        problem = f"the images of {name} have other content here, under the same names"
        _check_unchanged(problem, inputs.data_sha256(cell), cell.data_sha256)
    inputs.notes(cell)  # while the files are those that were decoded
    return arrays


def _placed(images: Any, device: torch.device) -> Any:
    """The images on the device if they fit there; images that are stored whole, as they are."""
    tensor = shared(images)
    return on_device(tensor, device) if isinstance(tensor, Tensor) else tensor


def _by_row(predicted: Tensor, rows: Sequence[int]) -> Tensor:
    """Predicted labels in the order of the rows that they belong to."""
    return predicted[torch.tensor(rows).argsort()]


def _check_unchanged(problem: str, actual: str, planned: str | None) -> None:
    if actual != planned:
        raise UsageError(
            f"{problem}: sha256 {actual}, and {planned} when the grid was planned; every machine that "
            "runs cells needs the same files, and they must not change meanwhile"
        )


def _train(strategy: Strategy, experience: Any, faults: dict[str, str]) -> ExperienceCost:
    """Learn an experience; returns what that cost."""
    counter = measured("energy_joules", lambda: counter_of(strategy.device), faults)
    before = measured("energy_joules", counter, faults) if counter else None
    strategy.features_read = 0
    with counting_images(strategy.model) as passed:
        seconds = _seconds(strategy, lambda: strategy.train(experience))
    phases: Phases = phases_of(strategy)
    after = measured("energy_joules", counter, faults) if counter else None
    return ExperienceCost(
        train_seconds=seconds,
        prepare_seconds=phases.prepare,
        consolidate_seconds=phases.consolidate,
        train_images=phases.images,
        forward_images=sum(passed),
        cached_images=strategy.features_read,
        energy_joules=None if after is None or before is None else after - before,
    )


@contextmanager
def counting_images(model: Any) -> Iterator[list[int]]:
    """Within the context, the number of images of each pass through the model is added to the list."""
    passed: list[int] = []
    hook = model.patch_embed.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    try:
        yield passed
    finally:
        hook.remove()


def _seconds(strategy: Strategy, function: Callable[[], object]) -> float:
    """Seconds that a function takes, until the device has finished."""
    start = time.perf_counter()
    function()
    if strategy.device.type == "cuda":
        torch.cuda.synchronize(strategy.device)
    return time.perf_counter() - start


def _with_sizes(
    cost: ExperienceCost, run: CellRun, image_size: int, faults: dict[str, str]
) -> ExperienceCost:
    """Add the sizes of the method, and the operations of a prediction, after the experience."""
    deployed = measured("deployed", lambda: deployed_copy(run.strategy, run.method), faults)
    sizes: dict[str, int] = measured("stored", lambda: _sizes(run), faults) or {}
    if deployed is not None:
        deployed_size = size_of(deployed.state_dict().values())
        images = images_like(1, image_size, run.strategy.device)
        sizes |= {"deployed": deployed_size.elements, "deployed_bytes": deployed_size.bytes}
        flops = measured("flops", lambda: flops_of(deployed, images), faults)
        sizes |= {} if flops is None else {"flops": flops}
    return cost.model_copy(update=sizes)


def _sizes(run: CellRun) -> dict[str, int]:
    """What the method trains and what it keeps beside the backbone."""
    stored = size_of(run.method.state().values())
    groups = run.strategy.optimizer.param_groups
    return {
        "trainable": sum(parameter.numel() for group in groups for parameter in group["params"]),
        "stored": stored.elements,
        "stored_bytes": stored.bytes,
    }


def deployed_copy(strategy: Strategy, method: Any) -> Any:
    """A copy of the model in eval mode, with merged adapters, as it would be deployed.

    Random numbers that merging may draw are not those of the training, which goes on afterwards.
    """
    model = copy.deepcopy(strategy.model).eval()
    with torch.random.fork_rng(devices=[strategy.device] if strategy.device.type == "cuda" else []):
        method.merge(model)
    return model


def images_like(batch: int, image_size: int, device: torch.device) -> Tensor:
    """Noise (batch, 3, S, S) with the statistics of normalised images; the same at every call."""
    noise = torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return noise.to(device)


def plain_vit(cell: Cell, inputs: Inputs) -> Any:
    """timm's ViT with a classifier for all classes, on the cell's device: the reference for all costs."""
    model = inputs.build_backbone(cell)
    model.reset_classifier(len(cell.class_order or ()))
    return model.to(cell.device).eval()


def _plain_flops(cell: Cell, inputs: Inputs) -> int:
    images = images_like(1, cell.protocol.image_size, torch.device(cell.device))
    return flops_of(plain_vit(cell, inputs), images)


def _row(predicted: Tensor, rows: Sequence[int], arrays: Arrays, tasks: int) -> list[int | None]:
    """Correct predictions of the test images of each column; null for a column that was not evaluated.

    Args:
        predicted: labels of the test images of these rows, ascending.
    """
    hits = np.full(len(arrays.test_y), -1)
    hits[rows] = predicted.numpy() == arrays.test_y[rows]
    columns = (hits[of_column] for of_column in columns_of(arrays.test_experience, tasks))
    return [None if (column < 0).any() else int(column.sum()) for column in columns]


def predictions_of(
    predicted: Mapping[int, Tensor], split: Split, labels: Int64Array, scenario: Scenario
) -> Predictions:
    """The predictions after each task, as the data set's class numbers.

    Args:
        predicted: see `CellRun.predicted`.
        labels: (N,) of all test images.
    """
    dtype = predictions.class_dtype(len(split.class_order))
    classes = np.array(split.class_order, dtype)
    by_task = np.full((len(split.task_sizes), len(labels)), np.iinfo(dtype).max, dtype)
    for task, of_evaluated in predicted.items():
        evaluated = EVALUATED[scenario](split.test_experience, task)
        by_task[task, evaluated] = classes[of_evaluated.numpy()]
    return Predictions(split.test_rows.astype(np.int32), classes[labels], by_task)


# ---- the parts of a run ------------------------------------------------------------------------------


def keep_features(cell: Cell, inputs: Inputs, observe: Observer) -> Features | None:
    """The frozen backbone's features of the images that the cell's method asks for; None if none are kept."""
    method = METHODS[cell.method.name].load()
    asked = features.wanted_inputs(method.asks_for, cell.protocol.augmentation)
    if inputs.paths.features is None or not asked:
        return None
    arrays, pipeline = inputs.images(cell), pipeline_of(cell, inputs)
    images: dict[features.Part, Any] = {"train": arrays.train_x, "test": arrays.test_x}
    wanted = [(part, mirrored) for part, mirrored in asked if not isinstance(images[part], WholeImages)]
    return features.prepare(
        wanted,
        images,
        lambda: frozen_backbone(cell, inputs).to(pipeline.device),
        pipeline,
        feature_conditions(cell, pipeline),
        inputs.paths.features,
        observe,
    )


def frozen_backbone(cell: Cell, inputs: Inputs) -> Any:
    """The backbone as the cell's method finds it; random weights depend on the seed."""
    seed_everything(cell.seed)
    return inputs.build_backbone(cell)


def feature_conditions(cell: Cell, pipeline: Pipeline) -> Conditions:
    """What the features of the cell's images depend on, besides the images."""
    protocol = cell.protocol
    return Conditions(
        model={
            "backbone": protocol.backbone,
            "weights": cell.backbone_sha256,
            "seed": cell.seed if cell.backbone_sha256 == backbone.RANDOM else None,
            "image_size": protocol.image_size,
            "gelu": protocol.gelu,
        },
        inputs={name: value for name, value in dataclasses.asdict(pipeline).items() if name != "device"},
        precision=protocol.precision,
        machine=resume.machine_conditions(cell),
        code=code_conditions(Method),
    )


def build_run(cell: Cell, inputs: Inputs, observe: Observer, kept: Features | None = None) -> CellRun:
    """The parts of a cell's run: its backbone, its method and its data pipeline in a strategy.

    Args:
        kept: features of the cell's images by the frozen backbone.
    """
    weights = inputs.backbone(cell)
    problem = f"the file with the weights of {weights.tag} is another one here"
    _check_unchanged(problem, weights.sha256, cell.backbone_sha256)
    pipeline = pipeline_of(cell, inputs)
    model = frozen_backbone(cell, inputs).to(pipeline.device)
    seed_everything(cell.seed)  # building may have drawn random numbers; the method starts from the seed
    method = METHODS[cell.method.name].load()(head_init=cell.protocol.head_init, **cell.method.options)
    reporter = ProgressReporter(observe, cell.tasks, PROGRESS_SECONDS)
    finite = FiniteLoss(PROGRESS_SECONDS), FiniteLogits(inputs.class_names(cell))
    plugins = [*finite, PredictionCollector(), reporter]
    experience = torch.from_numpy(inputs.images(cell).test_experience).to(pipeline.device)
    return build_strategy(cell.protocol, cell.seed, model, method, pipeline, plugins, kept, experience)


def build_strategy(
    protocol: Protocol,
    seed: int,
    model: Any,
    method: Any,
    pipeline: Pipeline,
    plugins: Sequence[Any],
    kept: Features | None = None,
    test_experience: Tensor | None = None,
) -> CellRun:
    """A strategy that trains `model` with `method` under the protocol.

    Args:
        seed: of the random streams.
        plugins: called after the method.
        kept: features of the images by the frozen backbone.
        test_experience: (m,) the experience of each test image; not needed where nothing is evaluated.
    """
    streams = {use: generator(seed, use) for use in ("augmentation", "statistics", "data order")}
    augment = AUGMENTATIONS[pipeline.geometry][protocol.augmentation]
    strategy = Strategy(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_collate=augment(pipeline, streams["augmentation"]),
        eval_collate=CLEAN[pipeline.geometry](pipeline),
        statistics_collate=augment(pipeline, streams["statistics"]),
        order=streams["data order"],
        precision=protocol.precision,
        drop_last=protocol.drop_last,
        features=kept,
        only_head=method.frozen_backbone,
        test_experience=test_experience,
        train_mb_size=protocol.batch_size,
        train_epochs=protocol.epochs,
        eval_mb_size=eval_batch(method, images_per_pass(model, pipeline.device, EVAL_BATCH)),
        device=pipeline.device,
        plugins=[PhaseTimer(), method, PhaseTimer(), Schedule(SCHEDULES[protocol.schedule]), *plugins],
    )
    return CellRun(strategy, method, streams)


def eval_batch(method: Any, most: int) -> int:
    """Images per evaluation batch: `most`, or what is nearest below it that has whole groups."""
    group = method.batch_group(method.hyper) or 1
    return max(most // group, 1) * group


def pipeline_of(cell: Cell, inputs: Inputs) -> Pipeline:
    """How the cell's images become the model's input."""
    weights, unit = inputs.backbone(cell), cell.protocol.normalisation == "unit"
    return Pipeline(
        size=cell.protocol.image_size,
        crop=inputs.test_crop(cell),
        mean=(0.0, 0.0, 0.0) if unit else weights.mean,
        std=(1.0, 1.0, 1.0) if unit else weights.std,
        device=torch.device(cell.device),
        geometry=cell.protocol.geometry,
    )


# ---- memory ------------------------------------------------------------------------------------------


@contextmanager
def _explaining_memory(cell: Cell, memory: PeakMemoryTracker) -> Iterator[None]:
    """Add the batch sizes and the peak to an error that says that memory ran out."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        peak = _peak_so_far(memory)
        usage = ""
        if peak is not None and peak.training is not None:
            usage = f"{peak.training.peak / 2**20:.0f} MiB in use at the highest point ({peak.kind}), "
        raise CellMemoryError(
            f"out of memory with {usage}a batch of {cell.protocol.batch_size} images in training and "
            f"at most {EVAL_BATCH} in evaluation: {_reason(error)}",
            peak,
        ) from error


def _peak_so_far(memory: PeakMemoryTracker) -> PeakMemory | None:
    if memory.meter is None:
        return None
    return PeakMemory(kind=memory.meter.kind, training=memory.meter.highest(memory.baseline))


def _training_memory(memory: PeakMemoryTracker) -> PeakMemory | None:
    return PeakMemory(kind=memory.meter.kind, training=memory.peak) if memory.meter else None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    by_message = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return by_message or isinstance(error, torch.OutOfMemoryError | MemoryError)


# ---- the record of an error --------------------------------------------------------------------------


def _record_of_error(
    cell: Cell, inputs: Inputs, context: RunContext, started: str, error: Exception
) -> Record:
    reason = str(error) if isinstance(error, CellMemoryError) else _reason(error)
    reason += resume_hint(cell, inputs.paths)
    record = record_without_results(cell, inputs, context, started, _status_of(error), reason)
    peak = error.peak if isinstance(error, CellMemoryError) else None
    return record.model_copy(update={"cost": Cost(peak_memory=peak)}) if peak else record


def _status_of(error: Exception) -> Status:
    if isinstance(error, DivergedError):
        return "diverged"
    return "oom" if isinstance(error, CellMemoryError) or _is_out_of_memory(error) else "failed"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
