"""How much slower the harness trains than a bare torch loop with the same steps.

    nox -s perf -- overhead [--rounds 10] [--images 1280] [--batch-size 64] [--precision fp32]

Both train `finetune` on the micro ViT with the same images, in turns within one run, so that a changing clock
frequency affects both. The headline is the median of the ratios within a round. A third row times the bare
loop against itself: its difference from 1 is noise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cell.backbone import MICRO_NAME, build, resolve
from bench.cell.batches import central, unit
from bench.cell.precision import autocast
from bench.cell.rng import seed_everything
from bench.cell.strategy import cosine
from bench.cell.stream import experiences
from methods.base import reset_optimizer, trainable
from methods.finetune import Finetune
from methods.head import mask_logits
from scripts.common import MEAN, STD, Rounds, build_harness, in_turns, random_images, ratios

SIZE = 32
CLASSES = 2


def harness(x: Tensor, y: Tensor, rounds: int, batch_size: int, precision: str) -> Callable[[int], None]:
    """One round: the strategy trains one experience, with all callbacks and the progress reports."""
    seed_everything(0)
    model, method = build(resolve(MICRO_NAME, None, []), SIZE), Finetune()
    strategy = build_harness(
        model,
        method,
        image_size=SIZE,
        experiences=rounds,
        batch_size=batch_size,
        epochs=1,
        precision=precision,
    )
    stream = experiences(x.numpy(), y.numpy(), y.numpy() // CLASSES)
    return lambda i: strategy.train(stream[i])


def bare(x: Tensor, y: Tensor, rounds: int, batch_size: int, precision: str) -> Callable[[int], None]:
    """One round: the same steps, written out."""
    seed_everything(0)
    model, method = build(resolve(MICRO_NAME, None, []), SIZE), Finetune()
    method.attach(model)
    optimizer = method.make_optimizer(model.parameters())
    n = len(x) // rounds
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def step(rows: Tensor, classes: list[int]) -> None:
        batch = central(unit(x[rows]), 1.0, SIZE)
        mirror = torch.rand(len(batch)) < 0.5
        batch = (torch.where(mirror[:, None, None, None], batch.flip(3), batch) - mean) / std
        with autocast(torch.device("cpu"), precision):
            logits = model(batch)
        loss = F.cross_entropy(mask_logits(logits.float(), classes), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def train(i: int) -> None:
        classes = list(range(i * CLASSES, (i + 1) * CLASSES))
        model.head.requires_grad_(False)
        model.head.grow(classes)
        model.train()
        reset_optimizer(optimizer, trainable(model))
        order = torch.randperm(n) + i * n
        batches = order.split(batch_size)
        for k, rows in enumerate(batches):
            optimizer.param_groups[0]["lr"] = method.hyper.lr * cosine(k, len(batches), 1)
            step(rows, classes)

    return train


def measure(rounds: int, n: int, batch_size: int, precision: str) -> Rounds:
    """Seconds of the harness and of the bare loop in each round of n images."""
    x, y = random_images(CLASSES * (rounds + 1), n // CLASSES, SIZE)
    loops = {"harness": harness, "bare loop": bare, "bare loop again": bare}
    functions = {name: make(x, y, rounds + 1, batch_size, precision) for name, make in loops.items()}
    return in_turns(functions, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, default=1280, help="per round")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    times = measure(args.rounds, args.images, args.batch_size, args.precision)
    per_image = 1e3 / args.images
    print(f"{MICRO_NAME}, batch {args.batch_size}, {args.precision}, {torch.get_num_threads()} threads")
    print(f"{args.rounds} rounds of {args.images} images, in turns; milliseconds per image, median")
    for name, column in times.items():
        print(f"  {name:16} {statistics.median(column) * per_image:7.3f}")
    shares = ratios(times, "bare loop")
    for title, name in (("harness / bare", "harness"), ("bare again / bare (noise)", "bare loop again")):
        low, middle, high = min(shares[name]), statistics.median(shares[name]), max(shares[name])
        print(f"  {title:26} median {middle:.3f}, {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
