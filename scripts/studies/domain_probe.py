"""How far a frozen backbone is from solving a stream of domains: trained on one domain, tested on each.

    .nox/env/bin/python -m scripts.studies.domain_probe --benchmarks digits-domains --seeds 0 \\
        --methods ncm,linear-probe [any option of `python -m bench run`]

Each row is a model of its own, which learns the images of one domain alone, as the cell's method and protocol
say, and then classifies the test images of all domains. Domains are in the order of the seed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch

from bench.cell.inputs import Inputs
from bench.cell.progress import ignore
from bench.cell.runner import EVAL_BATCH, build_run
from bench.cell.stream import RowDataset, experiences
from bench.spec import Cell
from methods.errors import UsageError
from scripts.common import plan_cells
from scripts.markdown import table
from scripts.studies.batchwise_leak import chunks, predict


def accuracies(cell: Cell, inputs: Inputs, domain: int) -> list[float]:
    """Accuracy in percent on each domain of a model that has learnt one of them, given by its place."""
    arrays = inputs.images(cell)
    strategy = build_run(cell, inputs, ignore).strategy
    this_alone = np.where(arrays.train_experience == domain, 0, -1)
    for experience in experiences(arrays.train_x, arrays.train_y, this_alone):
        strategy.train(experience)
    labels = arrays.test_y.tolist()
    images = RowDataset(torch.from_numpy(arrays.test_x), labels, range(len(labels)))
    predicted = predict(strategy, images, chunks(images.rows, EVAL_BATCH)).numpy()
    right = predicted == arrays.test_y
    return [100 * float(right[arrays.test_experience == other].mean()) for other in range(cell.tasks)]


def study(cell: Cell, inputs: Inputs) -> Iterator[tuple[str, ...]]:
    """The rows of a cell's table, one for each domain.

    Raises:
        UsageError: unless the cell is of a stream of domains, each with test images.
    """
    if not cell.domains or (inputs.split(cell).test_experience < 0).any():
        raise UsageError(
            f"{cell.benchmark.label} is not a stream of domains with test images of their own; legal are "
            "benchmarks such as digits-domains and domain-folder"
        )
    for number, name in enumerate(cell.domains):
        yield cell.method.label, name, *(f"{value:.1f}" for value in accuracies(cell, inputs, number))


def main(options: list[str]) -> None:
    if not options or {"-h", "--help"} & set(options):
        sys.exit(__doc__)
    cells, inputs = plan_cells(options)
    for cell in cells:
        rows = list(study(cell, inputs))
        print(f"\n{cell.benchmark.label}, seed {cell.seed}: accuracy (%)\n")
        print(table(("method", "trained on", *(cell.domains or ())), rows, heads=2))


if __name__ == "__main__":
    main(sys.argv[1:])
