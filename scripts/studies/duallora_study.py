"""The effect of DualLoRA's gates and calibration at inference, with one training per cell.

    .nox/env/bin/python -m scripts.studies.duallora_study --benchmarks cifar100 --scale quick \\
        --csv study.csv --eval-on validation --methods "duallora,duallora:bases=own" \\
        [any option of `python -m bench run`]

Each cell is trained once, as `run` trains it. Then the final model is tested with every gate rule (the one
it was trained with, all open, all shut, and an oracle with the true task), and each of these with every score
and posterior. A row is one combination; accuracies are over all test images, in percent. Rows with an oracle
are upper bounds, not methods, because they read the task id.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cell.inputs import Inputs
from bench.cell.progress import ignore
from bench.cell.runner import EVAL_BATCH, build_run
from bench.cell.stream import experiences, one_experience
from bench.spec import Cell
from methods import identity
from scripts.common import plan_cells

GATES = ("as trained", "open", "shut", "oracle")
TAUS = (0.1, 0.2, 0.3, 0.5, 1.0)
COLUMNS = ("method", "seed", "gate", "score", "blocks", "posterior", "task identity", "accuracy")


@dataclass(frozen=True)
class Trained:
    """A method after its last task.

    Attributes:
        own: by task, then by block, the relevance (n, t) of the task's own training images.
    """

    strategy: Any
    method: Any
    own: list[list[Tensor]]

    def mean_evidence(self, score: identity.Score) -> Tensor:
        """(L, t): mean evidence of each task's own images."""
        means = [[identity.evidence(e, score)[:, -1].mean() for e in blocks] for blocks in self.own]
        return torch.tensor(means).T


@dataclass(frozen=True)
class Tested:
    """The results of one pass over the test images.

    Attributes:
        logits: (n, C).
        relevance: (L, n, t).
        labels, truth: (n,) classes and tasks of the images.
        experience_of: (C,) task of each class.
    """

    logits: Tensor
    relevance: Tensor
    labels: Tensor
    truth: Tensor
    experience_of: Tensor

    def accuracy(self, weights: Tensor) -> float:
        """Accuracy in percent with weights (n, t) added to the logits."""
        predicted = (self.logits + weights[:, self.experience_of]).argmax(1)
        return 100 * (predicted == self.labels).float().mean().item()


def train(cell: Cell, inputs: Inputs) -> Trained:
    """Train a cell; the relevance that the method computes of each task's images is recorded."""
    arrays = inputs.images(cell)
    run = build_run(cell, inputs, ignore)
    strategy, method = run.strategy, run.method
    own: list[list[Tensor]] = []
    own_relevance = method.own_relevance

    def record(strategy: Any) -> list[Tensor]:
        own.append(own_relevance(strategy))
        return own[-1]

    method.own_relevance = record
    for experience in experiences(arrays.train_x, arrays.train_y, arrays.train_experience):
        strategy.train(experience)
    return Trained(strategy, method, own)


def set_gates(plug: Any, gate: str, truth: Tensor, t: int) -> None:
    """Make the plug use its own gates, or gates (B, t) that do not depend on the relevance."""
    plug.__dict__.pop("gates", None)
    ones, oracle = torch.ones(len(truth), t), (torch.arange(t)[None] <= truth[:, None]).float()
    fixed = {"open": ones, "shut": 0 * ones, "oracle": oracle}
    if gate in fixed:
        plug.gates = lambda _: fixed[gate]


@torch.no_grad()
def test(trained: Trained, images: Any, gate: str) -> Tested:
    """Test the final model with a gate rule, without calibration."""
    model, strategy, plugs = trained.strategy.model.eval(), trained.strategy, trained.method.plugs
    head, dataset = model.head, images.dataset
    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    head.hyper = replace(trained.method.hyper, calibration="none")
    for start in range(0, len(dataset), EVAL_BATCH):
        items = [dataset[i] for i in range(start, min(start + EVAL_BATCH, len(dataset)))]
        x, y, *_ = strategy.eval_collate(items)
        truth = head.experience_of[y]
        for plug in plugs:
            set_gates(plug, gate, truth, len(head.tasks))
        with strategy.autocast():
            logits = model(x).float()
        relevance = torch.stack(list(trained.method.context.relevance.values()), 1)
        batches.append((logits, relevance, y, truth))
    logits, e, y, truth = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Tested(logits, e.transpose(0, 1), y, truth, head.experience_of)


def variants(trained: Trained, tested: Tested) -> Iterator[tuple[Any, ...]]:
    """(score, last blocks read, posterior, task identity, accuracy) of every calibration."""
    truth, t = tested.truth, tested.relevance.shape[2]
    logit_task = tested.experience_of[tested.logits.argmax(1)]
    yield "-", "-", "none", percentage(logit_task == truth), tested.accuracy(torch.zeros(len(truth), t))
    oracle = torch.nn.functional.one_hot(truth, t).float().log()
    yield "-", "-", "oracle", 100.0, tested.accuracy(oracle)
    for score, n in product(("share", "remaining"), range(1, len(tested.relevance) + 1)):
        pairs = zip(tested.relevance[-n:], trained.mean_evidence(score)[-n:], strict=True)
        s = torch.stack([identity.scores(e, mean, score) for e, mean in pairs]).mean(0)
        for calibration, tau, theta in [
            *(("softmax", tau, 0.0) for tau in TAUS),
            ("stick", 0.1, 0.5),
            ("stick", 0.1, 1.0),
            ("hard", 0.3, 0.0),
        ]:
            pi = identity.posterior(s, calibration, tau, theta)
            weights = identity.log_weights(pi, calibration, 1.0, 0.5)
            name = f"{calibration}, tau {tau}" + (f", theta {theta}" if calibration == "stick" else "")
            yield score, n, name, percentage(pi.argmax(1) == truth), tested.accuracy(weights)


def percentage(correct: Tensor) -> float:
    return 100 * correct.float().mean().item()


def study(cell: Cell, inputs: Inputs) -> Iterator[tuple[Any, ...]]:
    """The rows of a cell."""
    trained, arrays = train(cell, inputs), inputs.images(cell)
    images = one_experience(arrays.test_x, arrays.test_y, range(len(arrays.test_y)))
    for gate in GATES:
        for row in variants(trained, test(trained, images, gate)):
            yield cell.method.label, cell.seed, gate, *row


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--csv", type=Path)
    own, options = parser.parse_known_args(arguments)
    if own.csv is None:
        sys.exit(__doc__)
    cells, inputs = plan_cells(options)
    with own.csv.open("a", newline="") as file:
        writer = csv.writer(file)
        if own.csv.stat().st_size == 0:
            writer.writerow(COLUMNS)
        for cell in cells:
            writer.writerows(study(cell, inputs))
            file.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
