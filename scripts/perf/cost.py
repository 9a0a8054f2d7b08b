"""The cost of each method, as multiples of the forward pass of the plain timm ViT.

    nox -s perf -- cost [--methods finetune,inflora] [--backbone vit_tiny_patch16_224] [--image-size 64]
                   [--inference-batches 1,64] [--train-batch 32] [--tasks 10] [--rounds 15]
                   [--images-per-class 8] [--epochs 4] [--precision fp32]

Weights and images are random; only time and size are measured. Each method learns `tasks` tasks of ten
classes in the harness. `name@t` is the model as it is deployed after t tasks; a training step is one of the
harness in task t, with every callback. All models of a table are timed once per round, in turns, and ratios
are formed within a round. The row "again" is a second plain ViT: its difference from 1 is noise. The
operations of an inference are a lower bound for its time if only arithmetic takes time: two passes give 2,
tokens added to the sequence give more than 1.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from bench.cell.backbone import MICRO_NAME, RANDOM, Backbone, build
from bench.cell.precision import autocast
from bench.cell.rng import seed_everything
from bench.cell.runner import deployed_copy, images_like
from bench.cell.strategy import Strategy
from bench.cell.stream import experiences
from bench.model import FrozenModel
from bench.options import read_options, split_list
from bench.probes.flops import flops_of
from bench.probes.sizes import size_of
from bench.probes.training import phases_of
from bench.spec import MAX_IMAGE_SIZE, Choice, parse_choice
from methods.errors import UsageError, describe_validation, unknown
from methods.hyper import fields_of
from methods.registry import METHODS
from methods.strategy import Plugin
from reports.text import DASH, number
from scripts.common import MEAN, STD, Rounds, build_harness, in_turns, random_images, ratios, seconds

CLASSES = 10
#: Calls per timing with one image, because one pass is too short to be timed.
CALLS_OF_ONE_IMAGE = 5

PLAIN = "plain timm forward"
AGAIN = "again (noise)"
HEAD_ONLY = "plain timm head-only step"

Count = Annotated[int, Field(gt=0)]


class Setting(FrozenModel):
    """The options of the command; `inference_batches` and `train_batch` are images per call."""

    methods: tuple[Choice, ...] = Field(min_length=1)
    backbone: str
    image_size: int = Field(gt=0, le=MAX_IMAGE_SIZE)
    inference_batches: tuple[Count, ...] = Field(min_length=1)
    train_batch: Count
    tasks: Count
    rounds: Count
    images_per_class: Count
    epochs: Count
    precision: Literal["fp32", "bf16"]

    @field_validator("methods")
    @classmethod
    def _distinct(cls, methods: tuple[Choice, ...]) -> tuple[Choice, ...]:
        labels = [choice.label for choice in methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice; name each once")
        return methods


@dataclass(frozen=True)
class Stage:
    """A method after a number of tasks.

    Attributes:
        name: label of the method and number of tasks: `name@t`.
        model: as it is deployed.
        stopped: the strategy before the first step of the last task; None if the method makes no steps.
        trained: number of parameters in the optimiser.
        stored: number of elements in the method's state.
        total: seconds of training the last task.
        outside: the part of them that the method takes before the first epoch and after the last.
    """

    name: str
    model: Any
    stopped: Strategy | None
    trained: int
    stored: int
    total: float
    outside: float


# ---- learning -------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Raised before the first step of an experience."""


class StopAtStep(Plugin):
    """Stops training before the first step of an experience."""

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        raise StoppedError


def vit(setting: Setting) -> Any:
    """A timm ViT with random weights, the same at every call, without a classifier.

    Raises:
        UsageError: for an unknown architecture, or a size that does not suit it.
    """
    tag = setting.backbone
    if tag != MICRO_NAME and not timm.is_model(tag):
        raise unknown("backbone", tag, [MICRO_NAME, *timm.list_models("vit_*")])
    seed_everything(0)
    return build(Backbone(tag, None, RANDOM, MEAN, STD), setting.image_size)


def make_method(choice: Choice, setting: Setting) -> Any:
    """The method, not attached to a model yet.

    Raises:
        UsageError: for an unknown method or option, one that does not suit so many tasks, or a method that
            trains jointly.
    """
    method_class = METHODS[choice.name].load()
    if method_class.trains_jointly:
        raise UsageError(
            f"method '{choice.name}' trains once, at the last task, so there is no cost per task to compare; "
            "leave it out of --methods"
        )
    method = method_class(**read_options(choice.options, fields_of(method_class.Hyper)))
    method.check(method.hyper, setting.tasks)
    return method


def learn(choice: Choice, setting: Setting) -> list[Stage]:
    """The method after its first task and after its last."""
    method = make_method(choice, setting)
    strategy = harness(method, setting)
    x, y = random_images(CLASSES * setting.tasks, setting.images_per_class, setting.image_size)
    stream = experiences(x.numpy(), y.numpy(), y.numpy() // CLASSES)
    harness(make_method(choice, setting), setting).train(stream[0])  # warms up: the first run is slower
    stages = []
    for t, experience in enumerate(stream, 1):
        measured = t in (1, setting.tasks)
        stopped = stop_at_step(copy.deepcopy(strategy), experience) if measured else None
        total = seconds(strategy.train, experience)
        if measured:
            stages.append(stage(f"{choice.label}@{t}", strategy, method, stopped, total))
    return stages


def harness(method: Any, setting: Setting) -> Strategy:
    """The harness with `method` on a new model."""
    model = vit(setting)
    seed_everything(0)  # building drew random numbers; the method starts from the seed
    return build_harness(
        model,
        method,
        image_size=setting.image_size,
        experiences=setting.tasks,
        batch_size=setting.train_batch,
        epochs=setting.epochs,
        precision=setting.precision,
    )


def stop_at_step(strategy: Strategy, experience: Any) -> Strategy | None:
    """Train up to the first step of `experience`; returns the strategy, or None if there is no step."""
    strategy.plugins.append(StopAtStep())
    try:
        strategy.train(experience)
    except StoppedError:
        strategy.plugins.pop()
        return strategy
    return None


def stage(name: str, strategy: Strategy, method: Any, stopped: Strategy | None, total: float) -> Stage:
    """The method directly after an experience, with a copy of its model as it is deployed."""
    phases = phases_of(strategy)
    return Stage(
        name=name,
        model=deployed_copy(strategy, method),
        stopped=stopped,
        trained=sum(p.numel() for group in strategy.optimizer.param_groups for p in group["params"]),
        stored=size_of(method.state().values()).elements,
        total=total,
        outside=phases.prepare + phases.consolidate,
    )


# ---- timing ---------------------------------------------------------------------------------------------


def inference(stages: Sequence[Stage], batch: int, setting: Setting) -> Rounds:
    """Seconds per image of the deployed models, of the plain ViT, and of a second plain ViT."""
    x = inputs(batch, setting)
    models = {PLAIN: plain(setting), AGAIN: plain(setting)} | {s.name: s.model for s in stages}
    functions = {name: forward(model, x, setting.precision) for name, model in models.items()}
    return per_image(in_turns(functions, setting.rounds, CALLS_OF_ONE_IMAGE if batch == 1 else 1), batch)


def steps(stages: Sequence[Stage], setting: Setting) -> Rounds:
    """Seconds per image of a training step and of the plain ViT; no entry for methods without steps."""
    batch, precision = setting.train_batch, setting.precision
    x = inputs(batch, setting)
    functions = {name: forward(plain(setting), x, precision) for name in (PLAIN, AGAIN)}
    functions[HEAD_ONLY] = head_only_step(plain(setting), x, precision)
    functions |= {s.name: step(s.stopped, x) for s in stages if s.stopped is not None}
    return per_image(in_turns(functions, setting.rounds), batch)


def per_image(times: Rounds, batch: int) -> Rounds:
    return {name: [t / batch for t in column] for name, column in times.items()}


def operations(model: Any, setting: Setting) -> int:
    """Floating-point operations in the prediction of one image."""
    return flops_of(model.eval(), inputs(1, setting))


def inputs(batch: int, setting: Setting) -> Tensor:
    """Noise (batch, 3, S, S) with the statistics of normalised images."""
    return images_like(batch, setting.image_size, torch.device("cpu"))


def plain(setting: Setting) -> Any:
    """timm's own ViT with a classifier for all classes, the only part that is trainable."""
    model = vit(setting)
    model.reset_classifier(CLASSES * setting.tasks)
    model.requires_grad_(False).head.requires_grad_(True)
    return model


def forward(model: Any, x: Tensor, precision: str) -> Callable[[int], object]:
    @torch.inference_mode()
    def predict(_: int) -> None:
        with autocast(x.device, precision):
            model(x)

    return predict


def head_only_step(model: Any, x: Tensor, precision: str) -> Callable[[int], object]:
    """A step of a bare loop that trains the classifier of `model`."""
    model.train()
    optimizer = torch.optim.Adam(model.head.parameters())
    y = torch.randint(model.num_classes, (len(x),))

    def train(_: int) -> None:
        optimizer.zero_grad()
        with autocast(x.device, precision):
            logits = model(x)
        F.cross_entropy(logits.float(), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return train


def step(strategy: Any, x: Tensor) -> Callable[[int], object]:
    """A training step of a stopped strategy: Avalanche's own loop over a single batch."""
    classes = torch.tensor(sorted(strategy.experience.classes_in_this_experience))
    y = classes[torch.randint(len(classes), (len(x),))]

    def train(_: int) -> None:
        strategy.dataloader = [[x, y]]
        strategy.training_epoch()

    return train


# ---- printing -------------------------------------------------------------------------------------------


def report(setting: Setting) -> Iterator[str]:
    """The parts of the output, each as soon as it is measured."""
    for choice in setting.methods:  # mistakes are reported before anything is trained
        make_method(choice, setting).attach(vit(setting))
    size, threads = setting.image_size, torch.get_num_threads()
    yield (
        f"{setting.backbone}, random weights, {size} x {size} pixels, {setting.precision}, "
        f"{threads} threads, torch {torch.__version__}"
    )
    yield (
        f"name@t: t tasks of {CLASSES} classes; median (25 % to 75 %) of {setting.rounds} rounds; "
        "x plain forward: as multiples of it in the same round"
    )
    stages = [stage for choice in setting.methods for stage in learn(choice, setting)]
    names = [s.name for s in stages]
    for batch in setting.inference_batches:
        mean = f", a timing is the mean of {CALLS_OF_ONE_IMAGE} calls" if batch == 1 else ""
        title = f"inference, batch {batch}{mean}"
        yield title + "\n" + times_table(inference(stages, batch, setting), [PLAIN, AGAIN, *names])
    title = f"training step, batch {setting.train_batch}"
    yield title + "\n" + times_table(steps(stages, setting), [PLAIN, AGAIN, HEAD_ONLY, *names])
    yield (
        f"training of task t, {CLASSES * setting.images_per_class} images, {setting.epochs} epochs; timed "
        "once; outside: the method's work before and after the epochs\n"
        "operations: counted in one inference, as multiples of those of the plain forward\n"
        + learning_table(stages, setting)
    )


def times_table(times: Rounds, names: Sequence[str]) -> str:
    """One row per name, with dashes where there is no time."""
    multiples = ratios(times, PLAIN)
    rows = [
        [name, spread(times[name], 1e3, 3), spread(multiples[name], 1.0, 2)]
        if name in times
        else [name, DASH, DASH]
        for name in names
    ]
    return aligned([["", "ms per image", "x plain forward"], *rows])


def learning_table(stages: Sequence[Stage], setting: Setting) -> str:
    header = ["", "trained parameters", "stored numbers", "seconds", "outside", "share", "operations"]
    plain_operations = operations(plain(setting), setting)
    rows = [
        [
            s.name,
            number(s.trained, 0),
            number(s.stored, 0),
            number(s.total, 3),
            number(s.outside, 3),
            number(100 * s.outside / s.total, 1) + " %",
            number(operations(s.model, setting) / plain_operations, 2),
        ]
        for s in stages
    ]
    return aligned([header, *rows])


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """Median and quartiles."""
    low, middle, high = (number(q * scale, digits) for q in np.percentile(values, [25, 50, 75]))
    return f"{middle} ({low} to {high})"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


# ---- the command ----------------------------------------------------------------------------------------


def read(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Mapping[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", help="names, separated by commas; a variant is name:key=value+key=value")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224", help="timm's name")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--inference-batches", default="1,64", help="images per call, separated by commas")
    parser.add_argument("--train-batch", type=int, default=32, help="images per step")
    parser.add_argument("--tasks", type=int, default=10, help=f"tasks of {CLASSES} classes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images-per-class", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    return parser, vars(parser.parse_args(arguments))


def setting_of(values: Mapping[str, Any]) -> Setting:
    """The setting that the options of the command line describe.

    Raises:
        UsageError: for a text that cannot be read, or a value that is not legal.
    """
    names = split_list(values["methods"]) if values["methods"] is not None else every_method()
    batches = values["inference_batches"].split(",")
    methods = tuple(parse_choice(name) for name in names)
    try:
        return Setting.model_validate({**values, "methods": methods, "inference_batches": batches})
    except ValidationError as error:
        raise UsageError(describe_validation(error)) from None


def every_method() -> list[str]:
    """The methods that train in every task."""
    return [name for name, entry in METHODS.items() if not entry.load().trains_jointly]


def main(arguments: Sequence[str] | None = None) -> None:
    parser, values = read(arguments)
    try:
        for part in report(setting_of(values)):
            print(part, end="\n\n", flush=True)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
