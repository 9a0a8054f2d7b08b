"""The errors of three careless ways of timing, for a ratio that is 1: a ViT compared with itself, on the CPU.

    .nox/env/bin/python -m scripts.studies.timing_traps [--images 64] [--rounds 20] [--image-size 64]

The comparisons: the first call of a model and its later ones, in processor time, which other processes do not
change; the same model while a second process keeps the processor busy; and two equal models, A timed before
that process starts and B after, compared with the two in turns over the same period. Pin the command to one
core, which the busy process then shares: `OMP_NUM_THREADS=1 taskset -c 1 ...`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bench.cell.backbone import RANDOM, Backbone, build
from bench.cell.rng import seed_everything
from scripts.common import MEAN, STD, Rounds, in_turns, ratios, seconds
from scripts.markdown import table

TAG = "vit_tiny_patch16_224"
#: It ends with the process that started it, even if that is killed.
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


def forward(images: int, size: int) -> Callable[[int], object]:
    """One inference of a ViT-Tiny with random weights, the same at every call of this function."""
    seed_everything(0)
    model: Any = build(Backbone(TAG, None, RANDOM, MEAN, STD), size)
    x = torch.zeros(images, 3, size, size)

    @torch.inference_mode()
    def predict(_: int) -> None:
        model(x)

    return predict


@contextmanager
def busy() -> Iterator[None]:
    """A process that computes all the time, on the cores that this one may use."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def column(function: Callable[[int], object], rounds: int) -> list[float]:
    return [seconds(function, i) for i in range(rounds)]


def processor_column(function: Callable[[int], object], rounds: int) -> list[float]:
    """As `column`, in processor time of this process."""
    times = []
    for i in range(rounds):
        start = time.process_time()
        function(i)
        times.append(time.process_time() - start)
    return times


def together(first: Rounds, second: Rounds) -> Rounds:
    return {name: first[name] + second[name] for name in first}


def comparison(name: str, times: Sequence[float], reference: Sequence[float]) -> list[str]:
    """A row: both medians in milliseconds, and their ratio."""
    a, b = statistics.median(times), statistics.median(reference)
    return [name, f"{1e3 * a:.1f}", f"{1e3 * b:.1f}", f"{a / b:.2f}"]


def rows(images: int, size: int, rounds: int) -> Iterator[list[str]]:
    """The three comparisons; the true ratio of the last two is 1."""
    a = forward(images, size)
    cold, *settled = processor_column(a, rounds + 1)
    yield comparison("first call / later calls, processor time", [cold], settled)
    quiet = column(a, rounds)
    with busy():
        yield comparison("with a busy process / without", column(a, rounds), quiet)
    models = {"A": a, "B": forward(images, size)}
    apart = column(a, rounds)
    with busy():
        yield comparison("B after A, load starts in between: B / A", column(models["B"], rounds), apart)
    calm = in_turns(models, rounds)
    with busy():
        both = together(calm, in_turns(models, rounds))
    yield in_turns_row("B and A in turns, same load: B / A", both)


def in_turns_row(name: str, times: Rounds) -> list[str]:
    """As `comparison`, but the ratio is the median of the ratios within a round."""
    medians = comparison(name, times["B"], times["A"])
    return [*medians[:3], f"{statistics.median(ratios(times, 'A')['B']):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="per call")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print(f"{TAG}, {args.images} images of {args.image_size} px per call, {torch.get_num_threads()} threads")
    header = ("comparison", "ms per call", "ms per call of the reference", "ratio")
    print(table(header, rows(args.images, args.image_size, args.rounds)))


if __name__ == "__main__":
    main()
