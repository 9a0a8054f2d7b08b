"""How much slower the harness trains than a bare torch loop that does the same steps.

    nox -s perf -- [--rounds 10] [--images 1280] [--batch-size 64] [--precision fp32]

Both sides train `finetune` on the micro ViT architecture with the same images, in turns within one run
(which goes first alternates), so that drifting clocks hit both. The headline is the median of the ratios
of one round. A third row times the bare loop against itself: what it shows beside 1 is noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.backbone import MICRO_NAME, build, resolve
from bench.batches import Pipeline, central, flipped, unit
from bench.progress import silent
from bench.rng import generator, seed_everything
from bench.runner import TICK_SECONDS
from bench.strategy import FiniteLoss, Schedule, Strategy, Watch, cosine
from bench.stream import experiences
from methods.base import claim, trainable
from methods.finetune import Finetune
from methods.head import only

SIDE = 32
CLASSES = 2
MEAN = STD = (0.5, 0.5, 0.5)


def images(n: int, rounds: int) -> tuple[Tensor, Tensor]:
    """uint8 images (rounds * n, 32, 32, 3) and labels, two classes a round."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rounds * n, SIDE, SIDE, 3), generator=rng, dtype=torch.uint8)
    labels = torch.arange(rounds * n) // (n // CLASSES)
    return pixels, labels


def harness(x: Tensor, y: Tensor, rounds: int, batch_size: int, precision: str) -> Callable[[int], None]:
    """One round: the strategy trains one experience, all callbacks and the progress report included."""
    seed_everything(0)
    model, method = build(resolve(MICRO_NAME, None, []), SIDE), Finetune()
    pipeline = Pipeline(SIDE, 1.0, MEAN, STD, torch.device("cpu"))
    strategy = Strategy(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_collate=flipped(pipeline, generator(0, "augmentation")),
        eval_collate=flipped(pipeline, generator(0, "augmentation")),
        order=generator(0, "data order"),
        precision=precision,
        train_mb_size=batch_size,
        train_epochs=1,
        eval_mb_size=batch_size,
        device=torch.device("cpu"),
        plugins=[method, Schedule(cosine), FiniteLoss(), Watch(silent, rounds, TICK_SECONDS)],
    )
    stream = experiences(x.numpy(), y.numpy(), (CLASSES,) * rounds)
    return lambda i: strategy.train(stream[i])


def bare(x: Tensor, y: Tensor, rounds: int, batch_size: int, precision: str) -> Callable[[int], None]:
    """One round: the same steps, written out."""
    seed_everything(0)
    model, method = build(resolve(MICRO_NAME, None, []), SIDE), Finetune()
    method.attach(model)
    optimizer = method.make_optimizer(model.parameters())
    n = len(x) // rounds
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def step(picked: Tensor, classes: list[int]) -> None:
        batch = central(unit(x[picked]), 1.0, SIDE)
        mirror = torch.rand(len(batch)) < 0.5
        batch = (torch.where(mirror[:, None, None, None], batch.flip(3), batch) - mean) / std
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(batch)
        loss = F.cross_entropy(only(logits.float(), classes), y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def train(i: int) -> None:
        classes = list(range(i * CLASSES, (i + 1) * CLASSES))
        model.head.requires_grad_(False)
        model.head.grow(classes)
        model.train()
        claim(optimizer, trainable(model))
        order = torch.randperm(n) + i * n
        batches = order.split(batch_size)
        for k, picked in enumerate(batches):
            optimizer.param_groups[0]["lr"] = method.hyper.lr * cosine(k, len(batches), 1)
            step(picked, classes)

    return train


def seconds(work: Callable[[int], None], i: int) -> float:
    start = time.perf_counter()
    work(i)
    return time.perf_counter() - start


def measure(rounds: int, n: int, batch_size: int, precision: str) -> list[tuple[float, float, float]]:
    """Seconds of (harness, bare, bare again) for each round after a first one that warms up."""
    x, y = images(n, rounds + 1)
    sides = [make(x, y, rounds + 1, batch_size, precision) for make in (harness, bare, bare)]
    found = []
    for i in range(rounds + 1):
        turn = range(3) if i % 2 else range(2, -1, -1)
        times = {side: seconds(sides[side], i) for side in turn}
        found.append((times[0], times[1], times[2]))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, default=1280, help="a round")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    found = measure(args.rounds, args.images, args.batch_size, args.precision)
    per_image = 1e3 / args.images
    print(f"{MICRO_NAME}, batch {args.batch_size}, {args.precision}, {torch.get_num_threads()} threads")
    print(f"{args.rounds} rounds of {args.images} images, in turns; milliseconds an image, median")
    for name, column in (("harness", 0), ("bare loop", 1), ("bare loop again", 2)):
        print(f"  {name:16} {statistics.median(row[column] for row in found) * per_image:7.3f}")
    for name, column in (("harness / bare", 0), ("bare again / bare (noise)", 2)):
        ratios = sorted(row[column] / row[1] for row in found)
        print(f"  {name:26} median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
