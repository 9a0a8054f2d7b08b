"""From counts of correct predictions to numbers; each metric with its name, formula, unit and direction.

The papers call several different quantities "average accuracy" and "forgetting". Here each has a name
of its own, and the report prints the formula beside the number. In the formulas T is the number of
tasks and a[i,j] the accuracy on task j's test images after learning task i, both counted from 1.
In a domain-incremental stream a task is a domain. If all tasks share one test set, the matrix has a single
column, and what compares tasks with each other is undefined.
A metric that is undefined, or that needs an evaluation which was not done, is None and never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

from bench.model import Scenario

#: correct[i][j]: test images of task j classified correctly after learning task i; None: not evaluated.
Correct = Sequence[Sequence[int | None]]
#: counts[j]: test images of task j.
Counts = Sequence[int]
Matrix = list[list[float | None]]


@dataclass(frozen=True)
class Metric:
    """One number about a finished cell.

    `unit` is "fraction" (of images, 0 to 1) or "difference" (of two fractions, -1 to 1); `direction`
    says which end is good; `source` is where the definition comes from; `domain_title` is its title in a
    domain-incremental stream, where that is another.
    """

    name: str
    title: str
    formula: str
    unit: Literal["fraction", "difference"]
    direction: Literal["higher", "lower"]
    source: str
    compute: Callable[[Correct, Counts], float | None]
    domain_title: str | None = None

    def title_in(self, scenario: Scenario) -> str:
        """Its title among the results of a scenario."""
        return self.domain_title if scenario == "domain-incremental" and self.domain_title else self.title


def accuracy_matrix(correct: Correct, counts: Counts) -> Matrix:
    """`a[i][j] = correct[i][j] / counts[j]`, fractions, T x T or T x 1, None where not evaluated.

    Raises:
        ValueError: if a task has no test images, or the shapes disagree.
    """
    if min(counts, default=0) < 1:
        raise ValueError(f"every task needs at least one test image, got counts {list(counts)}")
    return [
        [None if hits is None else hits / count for hits, count in zip(row, counts, strict=True)]
        for row in correct
    ]


def _by_task(correct: Correct, counts: Counts) -> Matrix:
    """The accuracy matrix where it has a column for each task, else an empty one."""
    return accuracy_matrix(correct, counts) if len(counts) == len(correct) else []


def incremental_accuracies(correct: Correct, counts: Counts) -> list[float | None]:
    """A_i for i = 1..T: the mean accuracy over the tasks learnt so far, each task weighing the same."""
    return [_mean(row[: i + 1]) for i, row in enumerate(accuracy_matrix(correct, counts))]


def accuracy(correct: Correct, counts: Counts) -> float | None:
    """Mean over tasks of the accuracy after the last one (Lopez-Paz and Ranzato, 2017: ACC)."""
    return incremental_accuracies(correct, counts)[-1]


def accuracy_weighted(correct: Correct, counts: Counts) -> float | None:
    """Correct predictions after the last task over all test images (the code of CODA-Prompt, InfLoRA).

    It differs from `accuracy` where tasks have unequal numbers of test images, as in ImageNet-R.
    """
    hits = [value for value in correct[-1] if value is not None]
    return sum(hits) / sum(counts) if len(hits) == len(counts) else None


def average_incremental_accuracy(correct: Correct, counts: Counts) -> float | None:
    """Mean of A_i over the whole stream (Rebuffi et al., 2017, iCaRL)."""
    return _mean(incremental_accuracies(correct, counts))


def forgetting(correct: Correct, counts: Counts) -> float | None:
    """Best accuracy a task had before the last one was learnt, minus its final one (Chaudhry et al., 2018).

    The maximum leaves out the last row, so that a gain shows as negative forgetting. Undefined for T = 1.
    """
    return _mean(forgetting_by_task(correct, counts))


def forgetting_by_task(correct: Correct, counts: Counts) -> list[float | None]:
    """What `forgetting` is the mean of: a fraction for each task but the last."""
    matrix = _by_task(correct, counts)
    last = len(matrix) - 1
    return [_difference(_best(matrix[i][j] for i in range(j, last)), matrix[last][j]) for j in range(last)]


def backward_transfer(correct: Correct, counts: Counts) -> float | None:
    """Final accuracy minus the one right after learning (Lopez-Paz and Ranzato, 2017: BWT).

    Avalanche's StreamForgetting is this with the sign reversed. Undefined for T = 1.
    """
    matrix = _by_task(correct, counts)
    last = len(matrix) - 1
    return _mean(_difference(matrix[last][j], matrix[j][j]) for j in range(last))


def forgetting_coda(correct: Correct, counts: Counts) -> float | None:
    """Mean drop per step (the code of CODA-Prompt); several times smaller than `forgetting`.

    Undefined for T = 1.
    """
    matrix = _by_task(correct, counts)
    return _mean(
        _mean(_difference(matrix[i - 1][j], matrix[i][j]) for j in range(i)) for i in range(1, len(matrix))
    )


def learning_accuracy(correct: Correct, counts: Counts) -> float | None:
    """Mean accuracy on each task right after learning it (Riemer et al., 2019: plasticity)."""
    matrix = _by_task(correct, counts)
    return _mean(matrix[j][j] for j in range(len(matrix)))


def unseen_accuracy(correct: Correct, counts: Counts) -> float | None:
    """Mean accuracy on tasks that are not learnt yet: what was learnt carries over to new domains.

    The forward transfer of Lopez-Paz and Ranzato (2017) is this over the next task only, less the accuracy
    of an untrained model. None where such tasks are not evaluated, as in a class-incremental stream.
    """
    matrix = _by_task(correct, counts)
    return _mean(_mean(row[i + 1 :]) for i, row in enumerate(matrix[:-1]))


def compute_all(correct: Correct, counts: Counts, metrics: Sequence[Metric]) -> dict[str, float | None]:
    """The metrics by name. `correct` is T x T, or T x 1 with one test set for all tasks."""
    return {metric.name: metric.compute(correct, counts) for metric in metrics}


def metrics_of(scenario: Scenario) -> tuple[Metric, ...]:
    """The metrics that results of a scenario may have."""
    return tuple(
        metric for metric in METRICS if scenario == "domain-incremental" or metric.name not in OF_DOMAINS_ONLY
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """None if a value is missing or there are none. fsum: the same bits on every Python version."""
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    return fsum(known) / len(known) if known and len(known) == len(numbers) else None


def _best(values: Iterable[float | None]) -> float | None:
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    return max(known) if known and len(known) == len(numbers) else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


METRICS: tuple[Metric, ...] = (
    Metric(
        "accuracy",
        "final accuracy",
        "A_T, where A_i = (1/i) Σ_{j≤i} a[i,j]",
        "fraction",
        "higher",
        "Lopez-Paz and Ranzato, 2017",
        accuracy,
        "final accuracy, mean over domains",
    ),
    Metric(
        "accuracy_weighted",
        "final accuracy, sample-weighted",
        "Σ_j correct[T,j] / Σ_j count[j]",
        "fraction",
        "higher",
        "the code of CODA-Prompt and InfLoRA",
        accuracy_weighted,
        "final accuracy, pooled over the images of all domains",
    ),
    Metric(
        "average_incremental_accuracy",
        "average incremental accuracy",
        "(1/T) Σ_i A_i",
        "fraction",
        "higher",
        "Rebuffi et al., 2017",
        average_incremental_accuracy,
    ),
    Metric(
        "forgetting",
        "forgetting",
        "1/(T-1) Σ_{j<T} (max_{j≤i<T} a[i,j] - a[T,j])",
        "difference",
        "lower",
        "Chaudhry et al., 2018",
        forgetting,
    ),
    Metric(
        "backward_transfer",
        "backward transfer",
        "1/(T-1) Σ_{j<T} (a[T,j] - a[j,j])",
        "difference",
        "higher",
        "Lopez-Paz and Ranzato, 2017",
        backward_transfer,
    ),
    Metric(
        "forgetting_coda",
        "forgetting per step",
        "1/(T-1) Σ_{i=2..T} 1/(i-1) Σ_{j<i} (a[i-1,j] - a[i,j])",
        "difference",
        "lower",
        "the code of CODA-Prompt",
        forgetting_coda,
    ),
    Metric(
        "learning_accuracy",
        "learning accuracy",
        "(1/T) Σ_j a[j,j]",
        "fraction",
        "higher",
        "Riemer et al., 2019",
        learning_accuracy,
    ),
    Metric(
        "unseen_accuracy",
        "accuracy on domains not learnt yet",
        "1/(T-1) Σ_{i<T} 1/(T-i) Σ_{j>i} a[i,j]",
        "fraction",
        "higher",
        "after Lopez-Paz and Ranzato, 2017 (forward transfer)",
        unseen_accuracy,
    ),
)

#: Metrics that need test images of tasks that are not learnt yet.
OF_DOMAINS_ONLY = ("unseen_accuracy",)
