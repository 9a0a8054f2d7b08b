"""How much a prediction depends on the images it is tested with: one training, several test batches.

    .nox/env/bin/python -m scripts.studies.batchwise_leak --methods "l2p,l2p:selection=batch,dualprompt" \\
        --benchmarks digits --seeds 0 [any option of `python -m bench run`]

Each cell is trained once as `run` would train it. Then the trained model classifies the same test images
four times: in mixed batches, in batches of one task, in batches of one class, one by one. Weights and
images are the same, so a method that treats each image on its own has the same accuracy four times.
`changed` counts the images whose predicted class is not the one of the mixed batches.

DualPrompt is tested once more with a vote: a batch shares the expert that most of its images match, as
the published code has it. It is trained with the experts of known tasks, so the training is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bench.cell.progress import ignore
from bench.cell.runner import EVAL_BATCH, assemble
from bench.cell.strategy import Strategy
from bench.cell.stream import ImageSet, experiences
from bench.cli import build_parser, gather
from bench.grid.plan import Paths, images_of, paths_from, plan, split_of
from bench.spec import Cell, settings_from
from methods.dualprompt import Experts, nearest
from methods.l2p import most_frequent
from scripts.markdown import table

MIXED = "mixed"
HEADER = ("method", "benchmark", "seed", "test batches", "accuracy (%)", "changed", "of")

#: Rows of the test images, batch by batch.
Batches = list[list[int]]


def orders(labels: Sequence[int], task_of_class: Sequence[int], size: int) -> dict[str, Batches]:
    """The ways to test: each holds every row once, in batches of at most `size`. `MIXED` comes first."""
    rows = list(range(len(labels)))
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return {
        MIXED: chunks(shuffled, size),
        "one task a batch": grouped(rows, [task_of_class[label] for label in labels], size),
        "one class a batch": grouped(rows, labels, size),
        "one image a batch": chunks(rows, 1),
    }


def grouped(rows: Sequence[int], groups: Sequence[int], size: int) -> Batches:
    """Batches of at most `size` rows of one group each."""
    of_group = [[row for row in rows if groups[row] == group] for group in sorted(set(groups))]
    return [batch for own in of_group for batch in chunks(own, size)]


def chunks(rows: Sequence[int], size: int) -> Batches:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def learn(cell: Cell, paths: Paths) -> Strategy:
    """The strategy after the last experience."""
    split, arrays = split_of(cell, paths), images_of(cell, paths)
    strategy = assemble(cell, paths, ignore).strategy
    for experience in experiences(arrays.train_x, arrays.train_y, split.task_sizes):
        strategy.train(experience)
    return strategy


@torch.no_grad()
def predict(strategy: Strategy, images: ImageSet, batches: Batches) -> Tensor:
    """The predicted classes (n,), by row."""
    model, predicted = strategy.model.eval(), torch.empty(len(images), dtype=torch.long)
    for rows in batches:
        x, _ = strategy.eval_collate([images[row] for row in rows])
        with strategy.autocast():
            predicted[rows] = model(x).argmax(1).cpu()
    return predicted


def majority(query: Tensor, keys: Tensor) -> Tensor:
    """Index (B,) of the key, of (n, D), that is nearest to most of the queries (B, D): the same for all."""
    return most_frequent(nearest(query, keys)[:, None])[:, 0]


def deployed(strategy: Strategy, label: str) -> Iterator[str]:
    """The ways in which the trained model chooses prompts, by name; each is in force when it is yielded."""
    yield label
    prompter = getattr(strategy.model, "prompts", None)
    if isinstance(prompter, Experts):
        prompter.select = majority
        yield f"{label}, with a vote"


def compared(predictions: Mapping[str, Tensor], labels: Tensor) -> Iterator[tuple[str, str, str, str]]:
    """(order, accuracy in percent, predictions unlike those of the mixed batches, images)."""
    for order, predicted in predictions.items():
        right = 100 * (predicted == labels).float().mean().item()
        changed = int((predicted != predictions[MIXED]).sum())
        yield order, f"{right:.2f}", str(changed), str(len(labels))


def study(cell: Cell, paths: Paths) -> Iterator[tuple[str, ...]]:
    """A line of the table for each way to deploy and to test the trained cell."""
    arrays, strategy = images_of(cell, paths), learn(cell, paths)
    labels = arrays.test_y.tolist()
    images = ImageSet(torch.from_numpy(arrays.test_x), labels, range(len(labels)))
    ways = orders(labels, arrays.task_of_class.tolist(), EVAL_BATCH)
    for name in deployed(strategy, cell.method.label):
        predictions = {order: predict(strategy, images, batches) for order, batches in ways.items()}
        for row in compared(predictions, torch.tensor(labels)):
            yield name, cell.benchmark.label, str(cell.seed), *row


def main() -> None:
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    settings = settings_from(*gather(build_parser().parse_args(["run", *sys.argv[1:]])))
    paths = paths_from(settings)
    rows: list[tuple[str, ...]] = []
    for planned in plan(settings, skip_missing=False):
        rows += study(planned.cell, paths)
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
