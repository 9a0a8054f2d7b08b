"""What it would save to keep the activations in front of the first block that a method adapts, and cost.

    nox -s perf -- front [--methods NAMES] [--backbone vit_tiny_patch16_224] [--image-size 64]
                   [--train-batch 32] [--rounds 15] [--precision fp32]

For each method: the first block whose output depends on something that is trained, the share of a training
step that the patch embedding and the blocks in front of it take, and the bytes of the activations there.
Weights and images are random. Steps and fronts are timed once per round, in turns; shares are formed within a
round. Each step is timed twice: the difference of its ratio from 1 is noise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cell.precision import autocast
from bench.cell.strategy import Strategy
from bench.cell.stream import experiences
from bench.options import split_list
from bench.spec import parse_choice
from reports.text import counted, number
from scripts.common import Rounds, in_turns, random_images, ratios
from scripts.markdown import table
from scripts.perf import cost
from scripts.perf.cost import CLASSES, Setting

#: The methods that adapt blocks, and two that are asked to leave the first half alone.
METHODS = "finetune,inflora,duallora,l2p,dualprompt,coda-prompt,"
METHODS += "dualprompt:general_blocks=[6,7]+expert_blocks=[8,9,10],coda-prompt:blocks=[6,7,8,9,10]"
#: Training images of CIFAR-100.
IMAGES = 50_000
BYTES = 4  # of an activation in fp32

STEP, AGAIN, FRONT = "step", "step again", "front"
HEADER = ("method", "first adapted block", "step (ms an image)", "front / step", "step again / step (noise)")
SIZES = ("KiB an image", "GiB for 50,000 images")


# ---- what a method leaves alone -------------------------------------------------------------------------


def at_first_step(label: str, setting: Setting) -> Strategy:
    """The harness with a method, stopped before the first step of its first task."""
    strategy = cost.harness(cost.make_method(parse_choice(label), setting), setting)
    x, y = random_images(CLASSES, setting.images_per_class, setting.image_size)
    (experience,) = experiences(x.numpy(), y.numpy(), y.numpy() // CLASSES)
    stopped = cost.stop_at_step(strategy, experience)
    assert stopped is not None, f"{label} makes no steps, so it has no share of one"
    return stopped


def first_adapted(strategy: Any, x: Tensor) -> int:
    """The first block whose output has a gradient in a training step on the images x (B, 3, S, S)."""
    blocks, adapted = strategy.model.blocks, set()

    def note(i: int, module: object, inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            adapted.add(i)

    hooks = [block.register_forward_hook(partial(note, i)) for i, block in enumerate(blocks)]
    try:
        cost.step(strategy, x)(0)
    finally:
        for hook in hooks:
            hook.remove()
    return min(adapted, default=len(blocks))


def activations(vit: Any, x: Tensor, first: int) -> Tensor:
    """The tokens (B, N, D) that the block `first` of a plain ViT reads."""
    tokens: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    for block in vit.blocks[:first]:
        tokens = block(tokens)
    return tokens


def front(vit: Any, x: Tensor, first: int, precision: str) -> Callable[[int], object]:
    """Computes the activations in front of a block."""

    @torch.no_grad()
    def compute(_: int) -> None:
        with autocast(x.device, precision):
            activations(vit, x, first)

    return compute


# ---- timing ---------------------------------------------------------------------------------------------


def timed(
    strategies: Mapping[str, Strategy], firsts: Mapping[str, int], setting: Setting
) -> dict[str, Rounds]:
    """Seconds of the steps and of the front of each method, all in turns."""
    x, plain = cost.inputs(setting.train_batch, setting), cost.plain(setting)
    functions: dict[str, Callable[[int], object]] = {}
    for label, strategy in strategies.items():
        step = cost.step(strategy, x)
        parts = {STEP: step, AGAIN: step, FRONT: front(plain, x, firsts[label], setting.precision)}
        functions |= {f"{label} {what}": function for what, function in parts.items()}
    times = in_turns(functions, setting.rounds)
    return {label: {what: times[f"{label} {what}"] for what in (STEP, AGAIN, FRONT)} for label in strategies}


def report(labels: Sequence[str], setting: Setting) -> Iterator[str]:
    """What was measured, in a line and a table."""
    x = cost.inputs(setting.train_batch, setting)
    strategies = {label: at_first_step(label, setting) for label in labels}
    firsts = {label: first_adapted(strategy, x) for label, strategy in strategies.items()}
    threads = counted(torch.get_num_threads(), "thread")
    yield (
        f"{setting.backbone}, random weights, {setting.image_size} px, {setting.precision}, batches of "
        f"{setting.train_batch}, {threads}; medians (ranges) of {setting.rounds} rounds"
    )
    times = timed(strategies, firsts, setting)
    yield table(HEADER + SIZES, [row(label, firsts[label], times[label], setting) for label in labels])


def row(label: str, first: int, times: Rounds, setting: Setting) -> list[str]:
    """The times of a method, and the size of the activations that would be kept."""
    shares = ratios(times, STEP)
    size = bytes_per_image(first, setting)
    return [
        label,
        f"{first}",
        f"{1000 * statistics.median(times[STEP]) / setting.train_batch:.2f}",
        spread(shares[FRONT]),
        spread(shares[AGAIN]),
        number(size / 2**10, 0),
        number(size * IMAGES / 2**30, 1),
    ]


def bytes_per_image(first: int, setting: Setting) -> int:
    """Bytes of the activations of an image in front of a block, in fp32."""
    with torch.no_grad():
        return activations(cost.plain(setting), cost.inputs(1, setting), first).numel() * BYTES


def spread(values: Sequence[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


# ---- the command ----------------------------------------------------------------------------------------


def setting_of(arguments: Sequence[str] | None) -> tuple[list[str], Setting]:
    """The methods and the setting that the options of the command line describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", default=METHODS, help="names, separated by commas")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224", help="timm's name")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--train-batch", type=int, default=32, help="images per step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    values = vars(parser.parse_args(arguments))
    labels = split_list(values.pop("methods"))
    others = {"inference_batches": (1,), "tasks": 1, "images_per_class": 2, "epochs": 1}
    methods = [parse_choice(label) for label in labels]
    return labels, Setting.model_validate({**values, **others, "methods": methods})


def main(arguments: Sequence[str] | None = None) -> None:
    for part in report(*setting_of(arguments)):
        print(part, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
