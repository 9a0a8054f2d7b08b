"""What DualLoRA's gates and calibration bring at inference, read off one training each.

    .nox/env/bin/python -m scripts.studies.duallora_study --benchmarks cifar100 --scale quick --csv study.csv \\
        --eval-on validation --methods "duallora,duallora:bases=own" [any option of `python -m bench run`]

Each cell is trained once as `run` would train it. Then its last state is tested with every gate rule
(the trained one, all open, all shut, and one that is told the true experience), and for each of these
with every score and posterior. A row is one combination; accuracies are over all images of the
evaluation, in percent. Rows with an oracle are upper bounds, not methods: they read the task id.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cell.progress import ignore
from bench.cell.runner import EVAL_BATCH, assemble
from bench.cell.stream import experiences, union
from bench.cli import build_parser, gather
from bench.grid.plan import Paths, images_of, paths_from, plan, split_of
from bench.spec import Cell, settings_from
from methods import identity

GATES = ("as trained", "open", "shut", "oracle")
TAUS = (0.1, 0.2, 0.3, 0.5, 1.0)
COLUMNS = ("method", "seed", "gate", "score", "blocks", "posterior", "task identity", "accuracy")


@dataclass(frozen=True)
class Trained:
    """A method after its last experience, and the relevance (n, t) of each experience's own images."""

    strategy: Any
    method: Any
    own: list[list[Tensor]]

    def usual(self, score: identity.Score) -> Tensor:
        """(L, t): mean evidence of each experience's own images."""
        means = [[identity.evidence(e, score)[:, -1].mean() for e in blocks] for blocks in self.own]
        return torch.tensor(means).T


@dataclass(frozen=True)
class Tested:
    """One pass over the test images: logits (n, C), relevance (L, n, t), labels and experiences (n,)."""

    logits: Tensor
    relevance: Tensor
    labels: Tensor
    truth: Tensor
    experience_of: Tensor

    def accuracy(self, weights: Tensor) -> float:
        """Percent right with weights (n, t) added to the logits."""
        predicted = (self.logits + weights[:, self.experience_of]).argmax(1)
        return 100 * (predicted == self.labels).float().mean().item()


def train(cell: Cell, paths: Paths) -> Trained:
    split, arrays = split_of(cell, paths), images_of(cell, paths)
    made = assemble(cell, paths, ignore)
    strategy, method = made.strategy, made.method
    own: list[list[Tensor]] = []
    measure = method.own_relevance

    def keep(strategy: Any) -> list[Tensor]:
        own.append(measure(strategy))
        return own[-1]

    method.own_relevance = keep
    for experience in experiences(arrays.train_x, arrays.train_y, split.task_sizes):
        strategy.train(experience)
    return Trained(strategy, method, own)


def set_gates(plug: Any, gate: str, truth: Tensor, t: int) -> None:
    """Make the plug use its own gates, or gates (B, t) that do not depend on the relevance."""
    plug.__dict__.pop("gates", None)
    ones, told = torch.ones(len(truth), t), (torch.arange(t)[None] <= truth[:, None]).float()
    fixed = {"open": ones, "shut": 0 * ones, "oracle": told}
    if gate in fixed:
        plug.gates = lambda _: fixed[gate]


@torch.no_grad()
def test(trained: Trained, images: Any, gate: str) -> Tested:
    model, strategy, plugs = trained.strategy.model.eval(), trained.strategy, trained.method.plugs
    head, dataset = model.head, images.dataset
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    head.hyper = replace(trained.method.hyper, calibration="none")
    for start in range(0, len(dataset), EVAL_BATCH):
        items = [dataset[i] for i in range(start, min(start + EVAL_BATCH, len(dataset)))]
        x, y = strategy.eval_collate(items)
        truth = head.experience_of[y]
        for plug in plugs:
            set_gates(plug, gate, truth, len(head.tasks))
        with strategy.autocast():
            logits = model(x).float()
        found.append((logits, torch.stack(list(trained.method.context.relevance.values()), 1), y, truth))
    logits, e, y, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Tested(logits, e.transpose(0, 1), y, truth, head.experience_of)


def variants(trained: Trained, tested: Tested) -> Iterator[tuple[Any, ...]]:
    """(score, last blocks read, posterior, task identity, accuracy) of every calibration."""
    truth, t = tested.truth, tested.relevance.shape[2]
    logit_task = tested.experience_of[tested.logits.argmax(1)]
    yield "-", "-", "none", share(logit_task == truth), tested.accuracy(torch.zeros(len(truth), t))
    told = torch.nn.functional.one_hot(truth, t).float().log()
    yield "-", "-", "oracle", 100.0, tested.accuracy(told)
    for score, n in product(("share", "remaining"), range(1, len(tested.relevance) + 1)):
        pairs = zip(tested.relevance[-n:], trained.usual(score)[-n:], strict=True)
        s = torch.stack([identity.scores(e, usual, score) for e, usual in pairs]).mean(0)
        for calibration, tau, theta in [
            *(("softmax", tau, 0.0) for tau in TAUS),
            ("stick", 0.1, 0.5),
            ("stick", 0.1, 1.0),
            ("hard", 0.3, 0.0),
        ]:
            pi = identity.posterior(s, calibration, tau, theta)
            weights = identity.log_weights(pi, calibration, 1.0, 0.5)
            name = f"{calibration}, tau {tau}" + (f", theta {theta}" if calibration == "stick" else "")
            yield score, n, name, share(pi.argmax(1) == truth), tested.accuracy(weights)


def share(right: Tensor) -> float:
    return 100 * right.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--csv", type=Path)
    own, rest = parser.parse_known_args()
    if own.csv is None:
        sys.exit(__doc__)
    settings = settings_from(*gather(build_parser().parse_args(["run", *rest])))
    paths = paths_from(settings)
    with own.csv.open("a", newline="") as file:
        writer = csv.writer(file)
        if own.csv.stat().st_size == 0:
            writer.writerow(COLUMNS)
        for planned in plan(settings, skip_missing=False):
            cell = planned.cell
            trained, arrays = train(cell, paths), images_of(cell, paths)
            images = union(arrays.test_x, arrays.test_y, sum(split_of(cell, paths).task_sizes))
            for gate in GATES:
                for row in variants(trained, test(trained, images, gate)):
                    writer.writerow((cell.method.label, cell.seed, gate, *row))
            file.flush()


if __name__ == "__main__":
    main()
