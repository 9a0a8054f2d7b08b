"""What the inference of finished cells takes: models restored from their states, timed beside each other.

It comes after the training of the whole grid, when the machine does nothing else. The cells of one session
differ in the method only, and the plain timm ViT is timed in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import backbone, checkpoint, record
from bench.checkpoint import DamagedError
from bench.costs import Conditions, Cost, Latency, Peak, paired_ratio, throughput_of, timing
from bench.executors.alone import Share, alone
from bench.manifest import device_name, now
from bench.plan import Places, Planned, find_backbone
from bench.probes.latency import Effort, Timed, Work, clock_of, time_in_turns
from bench.progress import Notice, Observe, Tick
from bench.record import RecordError
from bench.resume import conditions_of_code, method_state
from bench.rng import seed_everything
from bench.runner import images_like, plain_vit
from bench.spec import Cell
from bench.stopping import Stop
from bench.storage import StorageError, sweep
from bench.strategy import autocast
from methods.registry import METHODS

#: Images a call: one, and so many that the device is busy.
BATCHES = {"cpu": (1, 32), "cuda": (1, 128)}
#: Timed calls a model a round, for one image and for the larger batch.
CALLS = (5, 2)
#: Rounds at most; the smallest scale is there to run every line.
ROUNDS = {"smoke": 2, "quick": 20, "full": 20}
#: What the rounds of one batch size may take, for all models together.
SECONDS = 30.0
#: Models that are in memory at a time are twice as many: after the first experience, after the last.
MOST_CELLS = 12

PLAIN = "plain timm ViT"


@dataclass(frozen=True)
class Deployed:
    """A model in eval mode on its device, and whether all adapters are merged into its weights."""

    model: Any
    merged: bool


@dataclass(frozen=True)
class Found:
    """What was measured of a cell's inference."""

    latency: list[Latency]
    conditions: Conditions


def waiting(planned: Iterable[Planned], places: Places, tell: Observe) -> list[tuple[Cell, ...]]:
    """The sessions to be held: finished cells whose states wait to be measured, together where they may."""
    alike: dict[Cell, list[Cell]] = {}
    for item in planned:
        if _waits(item.cell, places, tell):
            alike.setdefault(item.cell.without_method(), []).append(item.cell)
    return [
        tuple(cells[i : i + MOST_CELLS]) for cells in alike.values() for i in range(0, len(cells), MOST_CELLS)
    ]


def _waits(cell: Cell, places: Places, tell: Observe) -> bool:
    """Whether a cell is finished, not measured, and its last state is whole; other states are deleted."""
    folder = places.results / cell.id
    if not checkpoint.kept(folder):
        return False
    try:
        found = record.read(folder / record.RECORD_NAME)
    except RecordError:  # none, or a damaged one, which was told
        return False
    if not found.done:
        return False
    if found.cost is None or found.cost.latency is not None:
        checkpoint.forget(folder)  # of a repetition that was never finished
        return False
    usable = [n for n, path in checkpoint.kept(folder).items() if _is_usable(cell, path, tell)]
    return cell.tasks in usable and usable == list(checkpoint.kept(folder))


def _is_usable(cell: Cell, path: Path, tell: Observe) -> bool:
    """Whether a state is whole, and of this code; a damaged one is set aside."""
    try:
        then = checkpoint.load(path).notes["conditions"]
    except DamagedError as error:
        checkpoint.set_aside(path)
        tell(Notice(f"{error}; it was set aside, and the inference of this model is not measured"))
        return False
    now = conditions_of_code(METHODS[cell.method.name].load())
    if any(then.get(key) != value for key, value in now.items()):
        tell(
            Notice(f"the inference of '{path}' is not measured: it was made by other code or other versions")
        )
        return False
    return True


def hold(
    cells: Sequence[Cell], places: Places, share: Share, tell: Observe, stop: Stop
) -> dict[str, tuple[Found, Peak | None]]:
    """Hold a session: the inference of each cell by its id, each measurement in a process of its own.

    Raises:
        KeyboardInterrupt: if it was stopped.
        DiedError, torch.OutOfMemoryError: if the session cannot be held.
    """
    measured = partial(alone, share=share, observe=tell, stop=stop)
    memory = {cell.id: measured(inference_memory, cell, places) for cell in cells}
    found = measured(latencies, cells, places)
    return {cell.id: (found[cell.id], memory[cell.id]) for cell in cells}


def keep(cell: Cell, places: Places, found: Found, memory: Peak | None) -> record.Record:
    """Add to a cell's record what was measured; its states are then no longer needed."""
    folder = places.results / cell.id
    old = record.read(folder / record.RECORD_NAME)
    assert old.cost is not None
    changes: dict[str, Any] = {"latency": found.latency, "conditions": found.conditions}
    changes["throughput"] = throughput_of(found.latency)
    if old.cost.peak_memory is not None:
        with_inference = {"inference": memory, "inference_batch": BATCHES[cell.device][-1]}
        changes["peak_memory"] = old.cost.peak_memory.model_copy(update=with_inference)
    made = old.model_copy(update={"cost": Cost.model_validate(dict(old.cost) | changes)})
    sweep(folder)
    record.write(made, folder)
    checkpoint.forget(folder)
    return made


# ---- in a process of its own ---------------------------------------------------------------------


def inference_memory(cell: Cell, places: Places, observe: Observe) -> Peak | None:
    """The highest point of memory in inference, of the model after the last experience.

    For a fresh process. None where the system does not tell.
    """
    from bench.probes.memory import Highest

    memory = Highest(_device(cell))
    model = deployed(cell, places, max(_states(cell, places))).model
    work = _inference(model, cell, BATCHES[cell.device][-1])
    with memory.watching():
        for _ in range(2):  # the second call stands beside what the first one left
            work()
    return memory.found


def latencies(cells: Sequence[Cell], places: Places, observe: Observe) -> dict[str, Found]:
    """Time the models of cells that differ in the method only, in turns; by cell id."""
    started, first = now(), cells[0]
    models = {_key(cell, t): deployed(cell, places, t) for cell in cells for t in _states(cell, places)}
    plain = plain_vit(first, places)
    timed = {}
    for step, (batch, calls) in enumerate(zip(BATCHES[first.device], CALLS, strict=True), start=1):
        works = {name: _inference(found.model, first, batch) for name, found in models.items()}
        works[PLAIN] = _inference(plain, first, batch)
        observe(Tick(f"{len(works)} models in turns, batch {batch}", step, len(CALLS), steps="part"))
        effort = Effort(ROUNDS[first.scale], calls, SECONDS)
        timed[batch] = time_in_turns(works, clock_of(_device(first)), effort)
    return {cell.id: _found(cell, cells, places, timed, models, started) for cell in cells}


def deployed(cell: Cell, places: Places, experiences: int) -> Deployed:
    """The cell's model after so many experiences, restored and merged as one would to deploy it."""
    protocol = cell.protocol
    found = find_backbone(protocol.backbone, places.weights, places.roots)
    seed_everything(cell.seed)  # random weights, where they are asked for
    model = backbone.build(found, protocol.image_size)
    method = METHODS[cell.method.name].load()(head_init=protocol.head_init, **cell.method.options)
    state = checkpoint.load(_states(cell, places)[experiences])
    method.restore(model, method_state(state))
    merged = method.merge(model)
    return Deployed(model.to(_device(cell)).eval(), merged)


def _states(cell: Cell, places: Places) -> dict[int, Path]:
    folder = places.results / cell.id
    found = checkpoint.kept(folder)
    if not found:
        raise StorageError(f"the states in '{folder}' are gone; was the results folder taken away?")
    return found


def _inference(model: Any, cell: Cell, batch: int) -> Work:
    """From normalised images on the device to logits, as an evaluation does it."""
    device = _device(cell)
    images = images_like(batch, cell.protocol.image_size, device)

    @torch.inference_mode()
    def work() -> None:
        with autocast(device, cell.protocol.precision):
            model(images)

    return work


def _found(
    cell: Cell,
    cells: Sequence[Cell],
    places: Places,
    timed: Mapping[int, Mapping[str, Timed]],
    models: Mapping[str, Deployed],
    started: str,
) -> Found:
    stages = list(_states(cell, places))
    return Found(
        latency=[
            _latency(t, batch, works[_key(cell, t)], works[PLAIN])
            for batch, works in timed.items()
            for t in stages
        ],
        conditions=Conditions(
            device=device_name(cell.device),
            precision=cell.protocol.precision,
            threads=torch.get_num_threads(),
            image_size=cell.protocol.image_size,
            merged=models[_key(cell, stages[-1])].merged,
            beside=[other.method.label for other in cells],
            started=started,
        ),
    )


def _latency(experiences: int, batch: int, model: Timed, plain: Timed) -> Latency:
    return Latency(
        experiences=experiences,
        batch=batch,
        rounds=model.rounds,
        warmup=model.warmup.calls,
        stable=model.warmup.stable and plain.warmup.stable,
        model=timing(model.samples),
        plain=timing(plain.samples),
        ratio=paired_ratio(model.samples, plain.samples, model.rounds),
    )


def _key(cell: Cell, experiences: int) -> str:
    return f"{cell.id} after {experiences}"


def _device(cell: Cell) -> torch.device:
    return torch.device(cell.device)
