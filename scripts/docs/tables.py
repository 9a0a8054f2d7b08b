"""The numbers that the documentation takes from the reference runs.

    python -m scripts.docs.tables            write them into README.md and docs/*.md
    python -m scripts.docs.tables --check    name the pages that differ; exit status 1 if there are any

Every number is computed from the records in results/reference/. `scripts.docs.markers` says how a page
marks the places.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.costs import ExperienceCost
from bench.record import RECORD_NAME, Record, read
from methods.errors import UsageError
from reports import tables
from reports.groups import Group, Row, group
from reports.stats import Estimate, estimate
from reports.text import DASH, number
from scripts.docs.markers import Contents, fill
from scripts.markdown import table as markdown
from scripts.studies import footguns

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

KIB, MIB = 2**10, 2**20

#: The rows of the tables of one page, in their order.
LORA_METHODS = ("joint", "duallora", "inflora", "finetune", "ncm", "linear-probe")
PROMPT_METHODS = ("coda-prompt", "dualprompt", "l2p", "finetune", "ncm", "linear-probe")
GROWTH_METHODS = ("finetune", "inflora", "duallora", "l2p", "dualprompt", "coda-prompt", "ncm")
FORMS_METHODS = ("duallora", "finetune", "linear-probe", "ncm")

#: The columns of the headline table that the README shows, by the beginning of their titles.
SUMMARY = ("method", "final accuracy", "forgetting", "latency ratio", "trainable parameters", "n")


@dataclass(frozen=True)
class Reference:
    """The reference runs: one table of the report per benchmark, and the size of each record's file."""

    groups: Mapping[str, Group]
    record_bytes: Mapping[tuple[str, str, int], int]

    def row(self, benchmark: str, method: str) -> Row:
        """The cells of a method on a benchmark.

        Raises:
            UsageError: if there are none.
        """
        for row in self.groups[benchmark].rows:
            if row.method == method:
                return row
        raise UsageError(
            f"results/reference has no cell of '{method}' on '{benchmark}'; run it, or remove its row"
        )


def load(folder: Path) -> Reference:
    """Read the reference runs.

    Raises:
        RecordError: if one of the records cannot be used.
    """
    paths = sorted(folder.glob(f"*/{RECORD_NAME}"))
    records = {path: read(path) for path in paths}
    groups = {one.benchmark: one for one in group(list(records.values()))}
    sizes = {(r.method, r.benchmark, r.seed): path.stat().st_size for path, r in records.items()}
    return Reference(groups, sizes)


def contents(reference: Reference) -> Contents:
    """Everything a marker may name."""
    return {
        "table": {name: render(reference) for name, render in TABLES.items()},
        "value": {name: render(reference) for name, render in VALUES.items()},
    }


# ---- tables of the report ------------------------------------------------------------------------


def summary(reference: Reference) -> str:
    """The headline of CIFAR-100, reduced to the columns of `SUMMARY`."""
    whole = tables.headline(reference.groups["cifar100"])
    kept = [_column(whole, start) for start in SUMMARY]
    rows = [[_bold(whole, i, j) for j in kept] for i in range(len(whole.rows))]
    return markdown([whole.columns[j] for j in kept], rows, heads=1)


def headline(benchmark: str) -> Callable[[Reference], str]:
    """The report's first table of a benchmark."""

    def render(reference: Reference) -> str:
        whole = tables.headline(reference.groups[benchmark])
        rows = [[_bold(whole, i, j) for j in range(len(whole.columns))] for i in range(len(whole.rows))]
        return markdown(whole.columns, rows, heads=whole.heads)

    return render


def _column(table: tables.Table, start: str) -> int:
    """The first column whose title begins with `start`: of the latency ratios, that of the smallest batch."""
    for j, title in enumerate(table.columns):
        if title.startswith(start):
            return j
    raise UsageError(f"no column of the headline begins with '{start}'; legal: {', '.join(table.columns)}")


def _bold(table: tables.Table, i: int, j: int) -> str:
    cell = table.rows[i][j]
    return f"**{cell}**" if (i, j) in table.bold else cell


# ---- tables of single pages ----------------------------------------------------------------------


def accuracies(methods: Sequence[str]) -> Callable[[Reference], str]:
    """Metrics and size of some methods on CIFAR-100."""
    header = (
        "method",
        "final accuracy (%)",
        "average incremental accuracy (%)",
        "forgetting (points)",
        "learning accuracy (%)",
        "parameters trained per task",
    )
    metrics = ("accuracy", "average_incremental_accuracy", "forgetting", "learning_accuracy")

    def render(reference: Reference) -> str:
        rows = [reference.row("cifar100", method) for method in methods]
        lines = [[row.method, *(metric(row, name) for name in metrics), trained(row)] for row in rows]
        return markdown(header, lines)

    return render


def forms(header: Sequence[str], compute: Callable[[Record], list[float]]) -> Callable[[Reference], str]:
    """Several formulas on the same matrices of `digits`, means over seeds."""

    def render(reference: Reference) -> str:
        lines = []
        for method in FORMS_METHODS:
            done = reference.row("digits", method).done
            means = [statistics.mean(column) for column in zip(*map(compute, done), strict=True)]
            lines.append([f"`{method}`", str(len(done)), *(number(value, 2) for value in means)])
        return markdown(("method", "n", *header), lines)

    return render


def growth(reference: Reference) -> str:
    """Cost of the first and of the last task on CIFAR-100, means over seeds."""
    header = (
        "method",
        "training of task 1, s",
        "of task 10, s",
        "evaluation after task 1, s",
        "after task 10, s",
        "method's state after task 1, MiB",
        "after task 10, MiB",
        "record, KiB",
    )
    rows = [reference.row("cifar100", method) for method in GROWTH_METHODS]
    return markdown(header, [list(_growth_cells(reference, row)) for row in rows])


def _growth_cells(reference: Reference, row: Row) -> Iterator[str]:
    yield row.method
    for digits, value in GROWTH:
        yield from (mean(map(value, costs(row, task)), digits) for task in (0, -1))
    sizes = (reference.record_bytes[r.method, r.benchmark, r.seed] / KIB for r in row.done)
    yield mean(sizes, 0)


def _stored_mebibytes(cost: ExperienceCost) -> float | None:
    return None if cost.stored_bytes is None else cost.stored_bytes / MIB


#: Digits and value of what the table of growth shows of the first and of the last task.
GROWTH: Sequence[tuple[int, Callable[[ExperienceCost], float | None]]] = (
    (1, lambda cost: cost.train_seconds),
    (2, lambda cost: cost.eval_seconds),
    (2, _stored_mebibytes),
)


def code_of(page: str) -> Callable[[Reference], str]:
    """The Python block of a page of docs/, so that another page can show the same code."""

    def render(_: Reference) -> str:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        (block,) = re.findall(r"^```python\n.*?^```$", text, re.DOTALL | re.MULTILINE)
        return str(block)

    return render


def costs(row: Row, task: int) -> list[ExperienceCost]:
    """The cost of one task in each finished cell."""
    return [record.cost.experiences[task] for record in row.done if record.cost]


def trained(row: Row) -> str:
    """Parameters trained in the last task."""
    return mean((cost.trainable for cost in costs(row, -1)), 0)


# ---- numbers inside sentences --------------------------------------------------------------------


def differences(a: str, b: str) -> Callable[[Reference], list[float]]:
    """Final accuracy of `a` minus that of `b` on CIFAR-100, in points, by seed."""

    def compute(reference: Reference) -> list[float]:
        first, second = (_by_seed(reference.row("cifar100", method)) for method in (a, b))
        return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]

    return compute


def listed(a: str, b: str) -> Callable[[Reference], str]:
    """The differences by seed: "11.6, 10.9 and 11.5"."""

    def render(reference: Reference) -> str:
        *first, last = [number(value, 1) for value in differences(a, b)(reference)]
        return f"{', '.join(first)} and {last}"

    return render


def mean_difference(a: str, b: str) -> Callable[[Reference], str]:
    """The mean difference with its interval."""
    return lambda reference: interval(estimate(differences(a, b)(reference)))


def wins(a: str, b: str) -> Callable[[Reference], str]:
    """On how many seeds `a` is more accurate: "3 of 3"."""

    def render(reference: Reference) -> str:
        values = differences(a, b)(reference)
        return f"{sum(value > 0 for value in values)} of {len(values)}"

    return render


def deviation(position: int) -> Callable[[Reference], str]:
    """Standard deviation of CODA-Prompt minus `finetune`: by seed (1), or as if seeds were unrelated (2)."""

    def render(reference: Reference) -> str:
        rows = (reference.row("cifar100", method) for method in ("coda-prompt", "finetune"))
        a, b = (list(_by_seed(row).values()) for row in rows)
        return number(footguns.pairing(a, b)[position], 2)

    return render


def mean_accuracy(method: str) -> Callable[[Reference], str]:
    """Final accuracy on CIFAR-100 in percent."""
    return lambda ref: number(statistics.mean(_by_seed(ref.row("cifar100", method)).values()), 2)


def identity_range(reference: Reference) -> str:
    """The lowest and highest share of test images that DualPrompt gave the expert of their task."""
    shares = [
        100 * share
        for record in reference.row("cifar100", "dualprompt").done
        if record.diagnostics
        and isinstance(share := record.diagnostics["task_identity_accuracy"].values[-1], float)
    ]
    return f"{number(min(shares), 1)} to {number(max(shares), 1)} %"


def _by_seed(row: Row) -> dict[int, float]:
    values = zip(row.done, row.metric("accuracy"), strict=True)
    return {record.seed: 100 * value for record, value in values if value is not None}


# ---- text ----------------------------------------------------------------------------------------


def metric(row: Row, name: str) -> str:
    """A metric in percent or points, mean and interval over seeds."""
    return interval(estimate(None if value is None else 100 * value for value in row.metric(name)))


def mean(values: Iterable[float | None], digits: int) -> str:
    """The mean over seeds, without an interval."""
    value = estimate(values)
    return DASH if value is None else number(value.mean, digits)


def interval(value: Estimate | None) -> str:
    """Mean and half-width of the 95 % t-interval, to two digits."""
    if value is None:
        return DASH
    middle = number(value.mean, 2)
    return middle if value.half_width is None else f"{middle} ± {number(value.half_width, 2)}"


TABLES: Mapping[str, Callable[[Reference], str]] = {
    "reference-summary": summary,
    "reference-cifar100": headline("cifar100"),
    "reference-digits": headline("digits"),
    "duallora-results": accuracies(LORA_METHODS),
    "prompts-results": accuracies(PROMPT_METHODS),
    "forgetting-forms": forms(
        ("max before the last", "BWT, sign reversed", "per step", "max", "short"), footguns.formulas
    ),
    "accuracy-forms": forms(
        ("task mean", "by sample", "incremental", "mean gap of the first two"), footguns.forms
    ),
    "growth": growth,
    "plain-avalanche": code_of("plain-avalanche.md"),
}

VALUES: Mapping[str, Callable[[Reference], str]] = {
    "coda-over-finetune": listed("coda-prompt", "finetune"),
    "coda-over-finetune-paired-std": deviation(1),
    "coda-over-finetune-unpaired-std": deviation(2),
    "dualprompt-over-finetune": listed("dualprompt", "finetune"),
    "l2p-over-finetune": listed("l2p", "finetune"),
    "inflora-over-finetune": mean_difference("inflora", "finetune"),
    "duallora-over-inflora": mean_difference("duallora", "inflora"),
    "duallora-over-inflora-seeds": wins("duallora", "inflora"),
    "inflora-accuracy": mean_accuracy("inflora"),
    "duallora-accuracy": mean_accuracy("duallora"),
    "dualprompt-identity": identity_range,
}


def outdated(pages: Sequence[Path], reference: Reference) -> dict[Path, str]:
    """The pages that differ from what the records give, with the text they should have.

    Raises:
        UsageError: if a marker of a page has no end, or names no content.
    """
    numbers = contents(reference)
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    filled = {page: fill(text, numbers) for page, text in texts.items()}
    return {page: text for page, text in filled.items() if text != texts[page]}


def main() -> None:
    """Write the pages, or check them."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    try:
        pages = outdated(PAGES, load(REFERENCE))
    except UsageError as error:
        sys.exit(str(error))
    for page, text in pages.items():
        if not sys.argv[1:]:
            page.write_text(text, encoding="utf-8")
        print(page.relative_to(ROOT))
    sys.exit(1 if pages and sys.argv[1:] else 0)


if __name__ == "__main__":
    main()
