from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy.stats import sem
from scipy.stats import t as student

from bench.metrics import metrics_of
from bench.record import Record
from methods.errors import UsageError
from reports.report import write_report

Make = Callable[..., Record]


@pytest.fixture(scope="module")
def report(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(records, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(report: Path) -> str:
    return report.read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """From a heading to the next one of its level."""
    level = title.partition(" ")[0]
    start = text.index(f"\n{title}\n") + 1
    end = text.find(f"\n{level} ", start)
    return text[start:end] if end > 0 else text[start:]


def rows_of(section_text: str) -> list[list[str]]:
    """The cells of all lines of tables."""
    lines = [line for line in section_text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def row_of(section_text: str, method: str) -> list[str]:
    """The first line of a table about a method, from its name on, without the marks of the best."""
    line = next(cells for cells in rows_of(section_text) if method in cells[:2])
    return [cell.replace("**", "").removesuffix(" ≈") for cell in line[line.index(method) :]]


def headline_of(section_text: str) -> list[dict[str, str]]:
    """The lines of a headline table, by the titles of its columns."""
    start = section_text.index("| rank |")
    header, _, *lines = rows_of(section_text[start : section_text.index("\n\n", start)])
    return [dict(zip(header, line, strict=True)) for line in lines]


def shown(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.{digits}f} ± {half:.{digits}f}"


def recomputed(record: Record) -> dict[str, float]:
    """The headline's numbers from the raw counts, written out a second time."""
    assert record.correct is not None
    assert record.counts is not None
    a: Any = [
        [None if c is None else 100 * c / n for c, n in zip(row, record.counts, strict=True)]
        for row in record.correct
    ]
    n = len(a)
    past = range(n - 1)
    return {
        "accuracy": sum(a[-1]) / n,
        "incremental": sum(sum(a[i][: i + 1]) / (i + 1) for i in range(n)) / n,
        "forgetting": sum(max(a[i][j] for i in range(j, n - 1)) - a[-1][j] for j in past) / (n - 1),
        "backward": sum(a[-1][j] - a[j][j] for j in past) / (n - 1),
        "learning": sum(a[j][j] for j in range(n)) / n,
    }


def quotients(record: Record, batch: int) -> float:
    """The latency ratio after the last task from the raw samples, written out a second time."""
    (latency,) = [at for at in record.cost.latency if (at.batch, at.experiences) == (batch, record.tasks)]  # type: ignore
    rounds = [np.reshape(t.samples, (latency.rounds, -1)) for t in (latency.model, latency.plain)]
    model, plain = (np.median(samples, axis=1) for samples in rounds)
    return float(np.median(model / plain))


def expected(records: list[Record]) -> list[str]:
    """A method's line of the headline, from raw counts and samples."""
    runs = [recomputed(record) for record in records]
    lines = [shown([run[name] for run in runs], 2) for name in ("accuracy", "incremental", "forgetting")]
    costs: list[Any] = [record.cost for record in records]
    if None in costs:
        return [*lines, "—", "—", "—", "—"]
    lines += [shown([quotients(record, batch) for record in records], 2) for batch in (1, 32)]
    memory = [cost.peak_memory.training for cost in costs]
    lines += [shown([(peak.peak - peak.baseline) / 2**20 for peak in memory], 0)]
    (trainable,) = {cost.experiences[-1].trainable for cost in costs}
    return [*lines, f"{trainable:,}"]


@pytest.fixture(scope="module")
def eventful_text(eventful: list[Record], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(eventful, tmp_path_factory.mktemp("eventful")).read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["finetune", "inflora", "duallora:gate=none", "l2p", "ncm"])
def test_every_number_of_the_headline_follows_from_raw_counts_and_samples(
    eventful_text: str, eventful: list[Record], method: str
) -> None:
    runs = [r for r in eventful if (r.method, r.benchmark) == (method, "digits") and r.done]
    cells = row_of(section(eventful_text, "## digits, class-incremental"), method)
    assert cells[1:-1] == expected(runs)
    assert cells[-1].split()[0] == str(len(runs))


def test_ranks_follow_the_accuracy_and_the_reference_has_none(
    eventful_text: str, eventful: list[Record]
) -> None:
    lines = headline_of(section(eventful_text, "## digits, class-incremental"))
    assert [line["rank"] for line in lines] == ["—", "1", "2", "3", "4", "5", "—"]
    assert [line["method"] for line in lines][::6] == ["joint", "coda-prompt"]
    finals = [
        fmean(
            recomputed(r)["accuracy"]
            for r in eventful
            if r.method == line["method"] and r.done and r.benchmark == "digits"
        )
        for line in lines[1:6]
    ]
    assert finals == sorted(finals, reverse=True)


def marked(
    eventful: list[Record], value: Callable[[Record], float], best: str, others: list[str]
) -> dict[str, bool]:
    """For each method whether the interval of its differences from the best leaves out zero."""
    runs = {
        (r.method, r.seed): value(r)
        for r in eventful
        if r.method in (best, *others) and r.benchmark == "digits"
    }
    apart = {}
    for other in others:
        gaps = np.array([runs[best, seed] - runs[other, seed] for seed in range(3)])
        low, high = student.interval(0.95, 2, gaps.mean(), sem(gaps))
        apart[other] = not low <= 0 <= high
    return apart


def test_marks_follow_from_paired_intervals(eventful_text: str, eventful: list[Record]) -> None:
    column = {
        line["method"]: line for line in headline_of(section(eventful_text, "## digits, class-incremental"))
    }
    final, ratio = "final accuracy (%) ↑", "latency ratio to the plain ViT, batch 32 ↓"
    apart = marked(
        eventful, lambda r: recomputed(r)["accuracy"], "duallora:gate=none", ["inflora", "finetune"]
    )
    assert apart == {"inflora": False, "finetune": True}
    ends = {name: cells[final].endswith("≈") for name, cells in column.items()}
    assert {name for name, tied in ends.items() if tied} == {"duallora:gate=none", "inflora"}
    assert "**" not in "".join(cells[final] for cells in column.values())
    apart = marked(eventful, lambda r: quotients(r, 32), "finetune", ["inflora", "duallora:gate=none"])
    assert apart == {"inflora": True, "duallora:gate=none": True}
    assert {name for name, cells in column.items() if "**" in cells[ratio]} == {"finetune"}
    assert "≈" not in "".join(cells[ratio] for cells in column.values())


def test_one_common_seed_marks_nothing(make: Make, tmp_path: Path) -> None:
    text = write_report([make("a", skill=0.9), make("b", skill=0.5)], tmp_path).read_text(encoding="utf-8")
    digits = section(text, "## digits, class-incremental")
    assert "**" not in "".join(line for line in digits.splitlines() if line.startswith("|"))
    assert "| 1 | a |" in digits
    assert "no two methods have two seeds in common" in digits


def test_a_contaminated_row_is_marked_and_explained(eventful_text: str) -> None:
    cifar = section(eventful_text, "## cifar100, class-incremental")
    assert row_of(cifar, "inflora †")
    assert "**Warning:** † contaminated: micro_vit" in cifar
    assert "†" not in section(eventful_text, "## digits, class-incremental")


def test_the_top_says_what_was_compared_and_the_answer(eventful_text: str, eventful: list[Record]) -> None:
    top = eventful_text[: eventful_text.index("\n## cifar100, class-incremental\n")]
    assert "- Cells: 22, of which 20 done, 1 failed, 1 skipped" in top
    assert "- Not run on cifar100, class-incremental: coda-prompt, duallora:gate=none, joint, ncm" in top
    runs = {
        (r.method, r.seed): recomputed(r)["accuracy"]
        for r in eventful
        if r.benchmark == "digits" and r.method in ("duallora:gate=none", "inflora")
    }
    gaps = np.array([runs["duallora:gate=none", seed] - runs["inflora", seed] for seed in range(3)])
    low, high = student.interval(0.95, 2, gaps.mean(), sem(gaps))
    assert f"{gaps.mean():.2f} points above inflora on 3 common seeds" in top
    assert f"(95 % interval of the difference {low:.2f} to {high:.2f})." in top
    assert "It is not significantly different from: inflora." in top


def test_joint_has_a_final_accuracy_and_dashes(text: str, records: list[Record]) -> None:
    finals = [
        100 * sum(c / n for c, n in zip(r.correct[-1], r.counts, strict=True)) / 3  # type: ignore[operator]
        for r in records
        if r.method == "joint" and r.correct and r.counts
    ]
    digits = section(text, "## digits, class-incremental")
    assert row_of(digits, "joint")[1:4] == [shown(finals, 2), "—", "—"]
    assert "joint: a reference, trained on all tasks at once" in digits


def test_one_seed_has_no_interval_and_says_so(text: str) -> None:
    digits = section(text, "## digits, class-incremental")
    cells = row_of(digits, "l2p")
    assert "±" not in "".join(cells)
    assert cells[-1] == "1 of 2 (oom)"
    assert "One seed only, so no interval: l2p." in digits


def test_what_did_not_finish_is_shown_and_not_averaged(text: str, records: list[Record]) -> None:
    digits = section(text, "## digits, class-incremental")
    assert "- l2p, seed 1: oom. The device ran out of memory." in digits
    assert r"- ncm, seed 0: failed. ValueError: bad \| pipe" in digits
    assert "- coda-prompt, seed 0: skipped. No weights here." in digits
    assert row_of(digits, "ncm")[1:] == ["—"] * 4 + ["0 of 1 (failed)"]
    only = next(r for r in records if r.method == "l2p" and r.done and r.benchmark == "digits")
    assert row_of(digits, "l2p")[1] == f"{recomputed(only)['accuracy']:.2f}"


def test_paired_differences_are_per_seed(text: str, records: list[Record]) -> None:
    runs = {
        (r.method, r.seed): recomputed(r)
        for r in records
        if r.benchmark == "digits" and r.done and r.method != "joint"
    }

    def gaps(name: str) -> list[float]:
        return [runs["finetune", s][name] - runs["duallora:gate=none", s][name] for s in range(3)]

    pairs = section(text, "### Differences from duallora:gate=none, paired by seed")
    line = row_of(pairs, "finetune")
    assert line[1] == shown(gaps("accuracy"), 2)
    assert line[2] == ", ".join(f"{seed}: {gap:+.2f}" for seed, gap in enumerate(gaps("accuracy")))
    assert line[3:] == ["0 of 3", shown(gaps("forgetting"), 2)]
    one = runs["l2p", 0]["accuracy"] - runs["duallora:gate=none", 0]["accuracy"]
    assert row_of(pairs, "l2p")[1:4] == [f"{one:.2f}", f"0: {one:+.2f}", "0 of 1"]


def test_warnings_stand_above_the_table_they_concern(text: str) -> None:
    cifar, digits = (
        section(text, "## cifar100, class-incremental"),
        section(text, "## digits, class-incremental"),
    )
    warning = "> **Warning:** † contaminated: micro_vit was pre-trained on these images (all cells)"
    assert cifar.index(warning) < cifar.index("| rank | method |")
    assert "contaminated" not in digits
    assert "Not all methods have results for the same seeds" in digits
    assert "Not all methods" not in cifar


WARNED: dict[str, tuple[dict[str, Any], str]] = {
    "subset": ({"config": {"scale": "quick"}}, "a subset, not comparable with published numbers"),
    "validation": ({"config": {"eval_on": "validation"}}, "Evaluated on validation"),
    "dirty": ({"manifest": {"dirty": True}}, "The code had uncommitted changes (a)"),
    "machines": ({"manifest": {"device": "cpu: another"}}, "different machines: cpu: a processor"),
    "commits": ({"manifest": {"commit": "7654321"}}, "different commits"),
    "paper": ({"config": {"protocol": {"name": "paper"}}}, "not obtained under equal conditions"),
    "class order": ({"class_order": [7, 9]}, "the same order"),
    "several at a time": (
        {"manifest": {"executor": "processes", "workers": 4}},
        "which makes training slower: processes, 4 at a time; serial, 1 at a time.",
    ),
    "as many as fit": ({"manifest": {"executor": "ray", "workers": None}}, "ray, as many as fit at a time"),
    "interrupted": (
        {"manifest": {"resumed": [1]}},
        "on a CPU, everything else is as in an uninterrupted run: a, seed 0, after task 1.",
    ),
}


@pytest.mark.parametrize(("other", "warning"), WARNED.values(), ids=WARNED.keys())
def test_warnings(make: Make, tmp_path: Path, other: dict[str, Any], warning: str) -> None:
    small = {"tasks": 1}
    calm = write_report([make("b", **small)], tmp_path / "calm").read_text(encoding="utf-8")
    assert "Warning" not in calm
    warned = write_report([make("b", **small), make("a", **small, **other)], tmp_path / "warned")
    assert warning in warned.read_text(encoding="utf-8")


def test_conditions_are_listed(text: str) -> None:
    conditions = section(text, "### Conditions of digits, class-incremental")
    for line in (
        "| image size | `32` |",
        "| machine | `cpu: a processor, 2 threads` |",
        "| version of torch | `2.9.0` |",
        f"| split sha256 | `{'ef' * 32}` |",
        "| commit | `1234567` |",
        "| classes of each task | `2 2 2` |",
        "- finetune: `rank = 4`",
        "- `python -m bench run`",
    ):
        assert line in conditions
    orders = re.findall(r"^- seed (\d): `([\d ]+)`$", conditions, re.MULTILINE)
    assert [seed for seed, _ in orders] == ["0", "1", "2"]


def test_classes_are_listed_by_number_with_their_names(make: Make, tmp_path: Path) -> None:
    names = {0: "cat", 1: "`dog`", 2: "2", 3: "3"}
    cells = [make("a", seed, tasks=2) for seed in (0, 1)]
    cells = [r.model_copy(update={"class_names": [names[c] for c in r.class_order or ()]}) for r in cells]
    text = write_report(cells, tmp_path / "named").read_text(encoding="utf-8")
    assert "Names of the classes:\n\n- `` 0 = cat, 1 = `dog`, 2 = 2, 3 = 3 ``\n" in text
    plain = [r.model_copy(update={"class_names": [str(c) for c in r.class_order or ()]}) for r in cells]
    assert "Names of the classes" not in write_report(plain, tmp_path / "plain").read_text(encoding="utf-8")


def test_the_conditions_of_the_timing_are_listed(eventful_text: str) -> None:
    conditions = section(eventful_text, "### Conditions of digits, class-incremental")
    assert "| timed on | `cpu: a processor, fp32, 2 threads, images of 32 pixels` |" in conditions
    assert "| timing | `batch 1 in 4 rounds of 5 calls, batch 32 in 4 rounds of 5 calls` |" in conditions


def test_without_timing_there_are_no_conditions_of_it(text: str) -> None:
    assert "| timed on |" not in text


def test_every_metric_is_listed_with_its_formula(text: str) -> None:
    for metric in metrics_of("class-incremental"):
        line = next(line for line in text.splitlines() if line.startswith(f"- **{metric.title}**"))
        assert metric.formula in line
        assert f"{metric.direction} is better" in line


def test_every_link_leads_to_a_file_and_every_figure_is_linked(report: Path, text: str) -> None:
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    files = {path.relative_to(report.parent).as_posix() for path in report.parent.rglob("figures/*")}
    assert links == {path for path in files if path.endswith(".svg")}
    assert {path.removesuffix(".svg") + ".png" for path in links} == files - links
    assert len(files) == 2 * (4 + 4)  # curves, forgetting, matrices and growth, of two benchmarks
    assert all((report.parent / link).stat().st_size > 1000 for link in links)


def test_same_records_same_bytes_in_any_order(report: Path, records: list[Record], tmp_path: Path) -> None:
    shuffled = random.Random(1).sample(records, len(records))
    again = write_report(shuffled, tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert files == sorted(path.relative_to(report.parent) for path in report.parent.rglob("*.*"))
    assert [f for f in files if (again.parent / f).read_bytes() != (report.parent / f).read_bytes()] == []


def test_conditions_are_never_mixed(make: Make, tmp_path: Path) -> None:
    quick = {"config": {"scale": "quick"}}
    cells = [make("a", s, tasks=1) for s in (0, 1)] + [make("a", s, tasks=1, **quick) for s in (0, 1)]
    text = write_report(cells, tmp_path).read_text(encoding="utf-8")
    for scale in ("full", "quick"):
        assert row_of(section(text, f"## digits, class-incremental (scale {scale})"), "a")[-1] == "2"
    assert "\n## digits, class-incremental\n" not in text


def test_foreign_text_is_neutralised(make: Make, unfinished: Make, tmp_path: Path) -> None:
    evil = "x|y`z\n# <img src=a>*"
    warned = {"warnings": [evil], "command": evil, "device": evil, "versions": {evil: evil}}
    config = {evil: evil, "method": {"options": {evil: evil}}}
    cells = [
        make(evil, 0, evil, tasks=2, manifest=warned, config=config),
        unfinished(evil, 1, "failed", evil, benchmark=evil, tasks=2, manifest=warned, config=config),
    ]
    text = write_report(cells, tmp_path).read_text(encoding="utf-8")
    outside_code = re.sub(r"(`+).*?(?<!`)\1(?!`)", "", text.replace("\\`", ""))
    assert "<img" not in outside_code
    assert not re.search(r"^# <", text, re.MULTILINE)
    for table in re.findall(r"^\|.*?$(?=\n\n)", text, re.MULTILINE | re.DOTALL):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    links = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert links
    assert all((tmp_path / link).is_file() for link in links)


def test_without_costs_there_is_no_section_and_no_column_of_them(make: Make, tmp_path: Path) -> None:
    text = write_report([make("a", tasks=1, cost=None)], tmp_path).read_text(encoding="utf-8")
    assert "### Costs" not in text
    (line,) = headline_of(section(text, "## digits, class-incremental"))
    assert [title.partition(" (")[0] for title in line] == [
        "rank",
        "method",
        "final accuracy",
        "average incremental accuracy",
        "forgetting",
        "n",
    ]


def test_costs_have_a_table_each(eventful_text: str) -> None:
    costs = section(section(eventful_text, "## digits, class-incremental"), "### Costs")
    assert re.findall("^#### (.*)$", costs, re.MULTILINE) == [
        "Latency of inference",
        "Memory",
        "Training",
        "Sizes",
    ]


def test_no_records_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="python -m bench run"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to_is_a_usage_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the report"):
        write_report([make(tasks=1)], tmp_path / "file")


def test_what_is_in_the_way_is_named_and_the_old_report_stays(make: Make, tmp_path: Path) -> None:
    old = write_report([make(tasks=1)], tmp_path).read_bytes()
    (tmp_path / "cells.csv").unlink()
    (tmp_path / "cells.csv").mkdir()
    with pytest.raises(
        UsageError, match=r"cannot write the report to .*cells.csv' is there, and is not a file"
    ):
        write_report([make("other", tasks=1)], tmp_path)
    assert (tmp_path / "report.md").read_bytes() == old


def test_a_condition_that_was_removed_leaves_no_file(make: Make, tmp_path: Path) -> None:
    quick, full = make(tasks=2, config={"scale": "quick"}), make(tasks=2)
    write_report([quick, full], tmp_path / "out")
    write_report([full], tmp_path / "out")
    write_report([full], tmp_path / "fresh")
    left, right = (
        {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")}
        for name in ("out", "fresh")
    )
    assert left == right


def test_reports_import_neither_torch_nor_avalanche(tmp_path: Path, make: Make) -> None:
    (tmp_path / "record.json").write_text(make().model_dump_json(by_alias=True))
    code = (
        "import sys; from pathlib import Path\n"
        "import reports.report, reports.terminal\n"
        "print(*{'matplotlib', 'scipy', 'pandas', 'numpy', 'rich'} & set(sys.modules), sep='')\n"
        "from bench.record import read\n"
        "records = [read(Path(sys.argv[1]) / 'record.json')]\n"
        "reports.report.write_report(records, Path(sys.argv[1]))\n"
        "reports.terminal.print_table(records)\n"
        "print(*{'torch', 'avalanche', 'timm'} & set(sys.modules), sep='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("", "")
    assert (tmp_path / "report.md").is_file()
