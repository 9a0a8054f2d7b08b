"""The tables of docs/footguns.md that follow from records, or from arithmetic alone.

    .nox/env/bin/python -m scripts.studies.footguns TOPIC [FOLDER]

    backbone RESULTS        accuracy by weights, all else equal
    normalisation RESULTS   accuracy by input normalisation
    split RESULTS           accuracy by list of images
    order RESULTS           variation over class orders, paired and not
    forgetting RESULTS      five formulas, same matrices
    accuracy RESULTS        three forms, same matrices
    intervals               how often a 95 % interval contains the mean
    lists FOLDER            three other lists for CIFAR-100

RESULTS is a folder that `python -m bench run --results RESULTS` has filled.
"""

from __future__ import annotations

import copy
import csv
import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import fsum, sqrt
from pathlib import Path
from typing import Any

from bench.benchmarks.base import Dataset, Scale, data_roots
from bench.benchmarks.cifar100 import Cifar100
from bench.metrics import accuracy_matrix
from bench.record import Record, read_all
from methods.errors import UsageError
from reports.stats import CONFIDENCE, estimate
from reports.tables import with_interval
from reports.text import DASH, number
from scripts.markdown import table

Matrix = Sequence[Sequence[float]]
Text = list[str]

#: Settings with fewer class orders are left out.
ENOUGH_ORDERS = 5
LISTS = (1, 2, 3)
AS_SHIPPED = "as shipped"
RUNS, RESAMPLES = 10_000, 2_000


# ---- one thing changed, all else equal --------------------------------------------------------------------


def take_backbone(config: dict[str, Any]) -> str:
    return str(config.pop("backbone_sha256"))[:8]


def take_normalisation(config: dict[str, Any]) -> str:
    return str(config["protocol"].pop("normalisation"))


def take_split(config: dict[str, Any]) -> str:
    for follows in ("split_sha256", "data_sha256", "places"):  # the last two are not in older records
        config.pop(follows, None)
    path = config.pop("benchmark")["options"].get("split")
    return Path(path).stem if path else AS_SHIPPED


#: Each removes the varied setting from a configuration, and returns its value as text.
TAKE: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "backbone": take_backbone,
    "normalisation": take_normalisation,
    "split": take_split,
}


def others(record: Record, take: Callable[[dict[str, Any]], str]) -> tuple[str, str]:
    """(configuration without the varied setting, method and seed, as text; value of the varied setting)."""
    config = copy.deepcopy(dict(record.config))
    for key in ("method", "seed", "class_order"):
        config.pop(key)
    value = take(config)
    return json.dumps(config, sort_keys=True), value


def varied(records: Iterable[Record], name: str) -> str:
    """Final accuracy by value of the setting `name`, and the difference from the first value by seed."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        rest, value = others(record, TAKE[name])
        groups[record.method, rest][value][record.seed] = percent(record, "accuracy")
    rows = [row for key in sorted(groups) if len(groups[key]) > 1 for row in compared(key[0], groups[key])]
    return table(("method", name, "final accuracy (%)", "n", "difference by seed (points)"), rows)


def compared(method: str, by_value: Mapping[str, Mapping[int, float]]) -> Iterator[Text]:
    """One row per value; differences are from the alphabetically first one."""
    reference = by_value[min(by_value)]
    for value in sorted(by_value):
        seeds = by_value[value]
        pairs = [seeds[seed] - reference[seed] for seed in seeds if seed in reference]
        difference = DASH if value == min(by_value) else interval(pairs)
        yield [method, value, interval(seeds.values()), str(len(seeds)), difference]


# ---- class orders -----------------------------------------------------------------------------------------


def variations(records: Iterable[Record]) -> str:
    """Two tables for each setting with enough orders: variation of each method, and of differences."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        groups[setting(record)][record.method][record.seed] = percent(record, "accuracy")
    parts = []
    for title, rest in sorted(groups):
        methods = sorted(groups[title, rest].items())
        by_method = {method: seeds for method, seeds in methods if len(seeds) >= ENOUGH_ORDERS}
        if by_method:
            pairs = [pair_table(by_method)] if len(by_method) > 1 else []
            parts += [title, variation_table(by_method), *pairs]
    return "\n\n".join(parts)


def setting(record: Record) -> tuple[str, str]:
    """The configuration without method and seed: as a title, and as text."""
    rest, weights = others(record, take_backbone)
    return f"{record.benchmark}, {record.tasks} tasks, weights {weights}", rest


def variation_table(by_method: Mapping[str, Mapping[int, float]]) -> str:
    rows = [
        [method, *(number(v, 2) for v in variation(list(seeds.values()))), str(len(seeds))]
        for method, seeds in by_method.items()
    ]
    header = ("final accuracy (%)", "mean", "standard deviation", "lowest", "highest", "range", "n")
    return table(header, rows)


def variation(values: Sequence[float]) -> tuple[float, ...]:
    """Mean, standard deviation (n - 1), lowest, highest, range."""
    low, high = min(values), max(values)
    return statistics.mean(values), statistics.stdev(values), low, high, high - low


def pair_table(by_method: Mapping[str, Mapping[int, float]]) -> str:
    rows = []
    for a, b in combinations(by_method, 2):
        seeds = sorted(by_method[a].keys() & by_method[b].keys())
        values = pairing([by_method[a][s] for s in seeds], [by_method[b][s] for s in seeds])
        rows.append([f"{a} - {b}", *(number(v, 2) for v in values), str(len(seeds))])
    return table(("difference (points)", "mean", "sd by seed", "sd unpaired", "n"), rows)


def pairing(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference, its standard deviation over paired seeds, and the one for independent seeds."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    unpaired = sqrt(statistics.variance(a) + statistics.variance(b))
    return statistics.mean(differences), statistics.stdev(differences), unpaired


# ---- forgetting and accuracy on the same matrices ---------------------------------------------------------


def forgetting_to_the_last(matrix: Matrix) -> float:
    """Best accuracy of a task, the last row included, minus its final one (PILOT, mammoth); at least 0."""
    last = len(matrix) - 1
    return fsum(max(matrix[i][j] for i in range(j, last + 1)) - matrix[last][j] for j in range(last)) / last


def forgetting_short(matrix: Matrix) -> float:
    """LibContinual's: the last task but one is missing in the sum, but counted in the divisor."""
    last = len(matrix) - 1
    return fsum(matrix[j][j] - matrix[last][j] for j in range(last - 1)) / last


def formulas(record: Record) -> list[float]:
    """Forgetting in points: three forms from the record's metrics, two computed here."""
    matrix: Any = accuracy_matrix(record.correct or [], record.counts or [])
    return [
        percent(record, "forgetting"),
        -percent(record, "backward_transfer"),
        percent(record, "forgetting_coda"),
        100 * forgetting_to_the_last(matrix),
        100 * forgetting_short(matrix),
    ]


def forms(record: Record) -> list[float]:
    """Three accuracies in percent, and the difference of the first two."""
    task_mean, weighted = percent(record, "accuracy"), percent(record, "accuracy_weighted")
    average = percent(record, "average_incremental_accuracy")
    return [task_mean, weighted, average, abs(task_mean - weighted)]


def forgettings(records: Iterable[Record]) -> str:
    header = (
        "forgetting (points)",
        "n",
        "max before the last",
        "BWT, sign reversed",
        "per step",
        "max",
        "short",
    )
    return means(records, formulas, header)


def accuracies(records: Iterable[Record]) -> str:
    header = ("accuracy (%)", "n", "task mean", "by sample", "incremental", "mean gap of the first two")
    return means(records, forms, header)


def means(records: Iterable[Record], numbers: Callable[[Record], list[float]], header: Sequence[str]) -> str:
    """One row for each setting and method that was evaluated after every task: means over seeds."""
    groups: dict[tuple[str, str, str], list[list[float]]] = defaultdict(list)
    for record in records:
        if record.tasks > 1 and all(row[0] is not None for row in record.correct or []):
            groups[(*setting(record), record.method)].append(numbers(record))
    rows = [
        [
            f"{method}: {title}",
            str(len(lines)),
            *(number(statistics.mean(c), 2) for c in zip(*lines, strict=True)),
        ]
        for (title, _, method), lines in sorted(groups.items())
    ]
    return table(header, rows)


# ---- intervals --------------------------------------------------------------------------------------------


def coverage(n: int, runs: int = RUNS, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float]:
    """How often, in percent, each interval over `n` normal values contains their true mean."""
    import numpy as np
    from scipy.special import stdtrit

    rng = np.random.default_rng(seed)
    values = rng.standard_normal((runs, n))
    mean = values.mean(1)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(1, ddof=1) / sqrt(n)
    picks = rng.integers(n, size=(resamples, n))
    edges = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    boot = np.array([np.percentile(row[picks].mean(1), edges) for row in values])
    contained = {
        "t": np.abs(mean) <= half,
        "bootstrap": (boot[:, 0] <= 0) & (boot[:, 1] >= 0),
        "mean ± std": np.abs(mean) <= values.std(1),
    }
    return {name: 100 * float(inside.mean()) for name, inside in contained.items()}


def coverages() -> str:
    rows = [[str(n), *(number(v, 1) for v in coverage(n).values())] for n in (3, 5, 10)]
    return table(("seeds", "t-interval", "percentile bootstrap", "mean ± std"), rows)


# ---- lists ------------------------------------------------------------------------------------------------


def drawn(labels: Sequence[int], per_class: int, rng: random.Random) -> list[int]:
    """Sorted rows: `per_class` random ones of each class."""
    rows: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    return sorted(row for label in sorted(rows) for row in rng.sample(rows[label], per_class))


def write_lists(folder: Path, dataset: Dataset, scale: Scale) -> str:
    """Write lists of random images, as many of each class as the scale has."""
    parts = (("train", dataset.train, scale.train_per_class), ("test", dataset.test, scale.test_per_class))
    folder.mkdir(parents=True, exist_ok=True)
    for seed in LISTS:
        rng = random.Random(seed)
        with (folder / f"list-{seed}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("split", "id"))
            for word, images, per_class in parts:
                rows = drawn(images.labels.tolist(), per_class or 1, rng)
                writer.writerows((word, images.ids[row]) for row in rows)
    return f"wrote {len(LISTS)} lists to {folder}"


# ---- the command ------------------------------------------------------------------------------------------


def percent(record: Record, metric: str) -> float:
    value = (record.metrics or {})[metric]
    assert value is not None
    return 100 * value


def interval(values: Iterable[float]) -> str:
    """Mean and half-width of the t-interval; without a half-width for a single value."""
    return with_interval(estimate(values), 2)


def done(folder: Path) -> list[Record]:
    """The finished cells of a folder.

    Raises:
        UsageError: if there are none.
    """
    records = [record for record in read_all(folder) if record.done]
    if not records:
        raise UsageError(f"'{folder}' holds no finished cell; run `python -m bench run --results {folder}`")
    return records


READ: Mapping[str, Callable[[list[Record]], str]] = {
    **{name: lambda records, name=name: varied(records, name) for name in TAKE},  # type: ignore[misc]
    "order": variations,
    "forgetting": forgettings,
    "accuracy": accuracies,
}


def answer(arguments: Sequence[str]) -> str:
    """The table that the arguments name.

    Raises:
        UsageError: with the list of topics, for any other arguments.
    """
    match arguments:
        case ["intervals"]:
            return coverages()
        case ["lists", folder]:
            cifar100 = Cifar100(Cifar100.Options()).open(data_roots(None))
            return write_lists(Path(folder), cifar100, Cifar100.scales["quick"])
        case [topic, folder] if topic in READ:
            return READ[topic](done(Path(folder)))
    raise UsageError(__doc__ or "")


def main() -> None:
    try:
        print(answer(sys.argv[1:]))
    except UsageError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
