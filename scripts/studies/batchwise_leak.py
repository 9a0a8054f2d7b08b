"""How much predictions depend on the other images of a test batch: one training, four ways to batch.

    .nox/env/bin/python -m scripts.studies.batchwise_leak --benchmarks digits --seeds 0 \\
        --methods "l2p,l2p:selection=batch+vote_size=128,dualprompt" [any option of `python -m bench run`]

Each cell is trained once, as `run` trains it. Then the trained model classifies the same test images four
times: in mixed batches, in batches of one task, in batches of one class, one by one. Weights and images are
the same, so the four accuracies of a method that treats each image separately are equal. `changed` counts the
images whose predicted class differs from that in the mixed batches.

DualPrompt is tested again with a vote: all images of a batch get the expert that most of them match, as in
the published code. In training the task is known, so the training is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bench.cell.inputs import Inputs
from bench.cell.progress import ignore
from bench.cell.runner import EVAL_BATCH, build_run
from bench.cell.strategy import Strategy
from bench.cell.stream import RowDataset, experiences
from bench.spec import Cell
from methods.dualprompt import Experts, nearest
from methods.prompts import most_frequent
from scripts.common import plan_cells
from scripts.markdown import table

MIXED = "mixed"
HEADER = ("method", "benchmark", "seed", "test batches", "accuracy (%)", "changed", "of")

#: Rows of the test images, batch by batch.
Batches = list[list[int]]


def orders(labels: Sequence[int], task_of_label: Sequence[int], size: int) -> dict[str, Batches]:
    """The ways to batch, by name: each has every row once, in batches of at most `size`. `MIXED` is first."""
    rows = list(range(len(labels)))
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return {
        MIXED: chunks(shuffled, size),
        "one task per batch": grouped(rows, [task_of_label[label] for label in labels], size),
        "one class per batch": grouped(rows, labels, size),
        "one image per batch": chunks(rows, 1),
    }


def grouped(rows: Sequence[int], groups: Sequence[int], size: int) -> Batches:
    """Batches of at most `size` rows, each of one group."""
    by_group = [[row for row in rows if groups[row] == group] for group in sorted(set(groups))]
    return [batch for members in by_group for batch in chunks(members, size)]


def chunks(rows: Sequence[int], size: int) -> Batches:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def learn(cell: Cell, inputs: Inputs) -> Strategy:
    """The strategy after the last task."""
    arrays = inputs.images(cell)
    strategy = build_run(cell, inputs, ignore).strategy
    for experience in experiences(arrays.train_x, arrays.train_y, arrays.train_experience):
        strategy.train(experience)
    return strategy


@torch.no_grad()
def predict(strategy: Strategy, images: RowDataset, batches: Batches) -> Tensor:
    """The predicted classes (n,), by row."""
    model, predicted = strategy.model.eval(), torch.empty(len(images), dtype=torch.long)
    for rows in batches:
        x, *_ = strategy.eval_collate([images[row] for row in rows])
        with strategy.autocast():
            predicted[rows] = model(x).argmax(1).cpu()
    return predicted


def majority(query: Tensor, keys: Tensor) -> Tensor:
    """Index (B,) of the key, of (n, D), that is nearest to most of the queries (B, D): the same for all."""
    return most_frequent(nearest(query, keys)[:, None])[:, 0]


def selections(strategy: Strategy, label: str) -> Iterator[str]:
    """The names of the ways in which the model selects prompts; each is set when its name is yielded."""
    yield label
    prompter = getattr(strategy.model, "prompts", None)
    if isinstance(prompter, Experts):
        prompter.select = majority
        yield f"{label}, with a vote"


def compare(predictions: Mapping[str, Tensor], labels: Tensor) -> Iterator[tuple[str, str, str, str]]:
    """(way to batch, accuracy in percent, number of predictions that differ from `MIXED`, images)."""
    for order, predicted in predictions.items():
        accuracy = 100 * (predicted == labels).float().mean().item()
        changed = int((predicted != predictions[MIXED]).sum())
        yield order, f"{accuracy:.2f}", str(changed), str(len(labels))


def study(cell: Cell, inputs: Inputs) -> Iterator[tuple[str, ...]]:
    """The rows of the table for a cell, one for each way to select prompts and to batch."""
    arrays, strategy = inputs.images(cell), learn(cell, inputs)
    labels = arrays.test_y.tolist()
    images = RowDataset(torch.from_numpy(arrays.test_x), labels, range(len(labels)))
    by_order = orders(labels, arrays.test_experience.tolist(), EVAL_BATCH)
    for name in selections(strategy, cell.method.label):
        predictions = {order: predict(strategy, images, batches) for order, batches in by_order.items()}
        for row in compare(predictions, torch.tensor(labels)):
            yield name, cell.benchmark.label, str(cell.seed), *row


def main(options: Sequence[str]) -> None:
    if not options or {"-h", "--help"} & set(options):
        sys.exit(__doc__)
    cells, inputs = plan_cells(options)
    print(table(HEADER, [row for cell in cells for row in study(cell, inputs)]))


if __name__ == "__main__":
    main(sys.argv[1:])
