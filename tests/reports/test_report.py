from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy.stats import t as student

from bench.metrics import METRICS
from bench.record import Record
from methods.errors import UsageError
from reports.report import write_report
from tests.reports.conftest import measured

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


def row_of(section_text: str, method: str) -> list[str]:
    line = next(line for line in section_text.splitlines() if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def shown(values: list[float], digits: int) -> str:
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


@pytest.mark.parametrize("method", ["finetune", "duallora:gate=none"])
def test_headline_follows_from_the_raw_matrices(text: str, records: list[Record], method: str) -> None:
    runs = [recomputed(r) for r in records if r.method == method and r.benchmark == "digits"]
    cells = row_of(section(text, "## digits"), method)
    assert cells[1:6] == [shown([run[name] for run in runs], 2) for name in runs[0]]
    assert cells[6] == "12"
    assert cells[7] == shown([3 * 1.25, 3 * 2.25, 3 * 3.25], 1)
    assert cells[8] == "3"


def test_joint_has_a_final_accuracy_and_dashes(text: str, records: list[Record]) -> None:
    finals = [
        100 * sum(c / n for c, n in zip(r.correct[-1], r.counts, strict=True)) / 3  # type: ignore[operator]
        for r in records
        if r.method == "joint" and r.correct and r.counts
    ]
    digits = section(text, "## digits")
    assert row_of(digits, "joint")[1:6] == [shown(finals, 2), "—", "—", "—", "—"]
    assert "Evaluated after the last task only: joint." in digits


def test_one_seed_has_no_interval_and_says_so(text: str) -> None:
    digits = section(text, "## digits")
    cells = row_of(digits, "l2p")
    assert "±" not in "".join(cells)
    assert cells[8] == "1 of 2 (oom)"
    assert "One seed only, hence no interval: l2p." in digits


def test_what_did_not_finish_is_shown_and_not_averaged(text: str, records: list[Record]) -> None:
    digits = section(text, "## digits")
    assert "- l2p, seed 1: oom. The device ran out of memory." in digits
    assert r"- ncm, seed 0: failed. ValueError: bad \| pipe" in digits
    assert "- coda-prompt, seed 0: skipped. No weights here." in digits
    assert row_of(digits, "ncm")[1:] == ["—"] * 7 + ["0 of 1 (failed)"]
    only = next(r for r in records if r.method == "l2p" and r.done and r.benchmark == "digits")
    assert row_of(digits, "l2p")[1] == f"{recomputed(only)['accuracy']:.2f}"


def test_paired_differences_are_per_seed(text: str, records: list[Record]) -> None:
    finals = {
        (r.method, r.seed): recomputed(r)["accuracy"]
        for r in records
        if r.benchmark == "digits" and r.method in ("finetune", "duallora:gate=none")
    }
    differences = [finals["finetune", s] - finals["duallora:gate=none", s] for s in range(3)]
    pairs = section(text, "### Differences from duallora:gate=none, paired by seed")
    assert row_of(pairs, "finetune")[1:] == [shown(differences, 2), "0 of 3"]
    assert "| l2p |" not in pairs


def test_warnings_stand_above_the_table_they_concern(text: str) -> None:
    cifar, digits = section(text, "## cifar100"), section(text, "## digits")
    warning = "> **Warning:** contaminated: micro_vit was pre-trained on these images (all cells)"
    assert cifar.index(warning) < cifar.index("| method |")
    assert "contaminated" not in digits
    assert "Not all methods have results for the same seeds" in digits
    assert "same seeds" not in cifar


WARNED: dict[str, tuple[dict[str, Any], str]] = {
    "subset": ({"config": {"scale": "quick"}}, "a subset, not comparable with published numbers"),
    "validation": ({"config": {"eval_on": "validation"}}, "Evaluated on validation"),
    "dirty": ({"manifest": {"dirty": True}}, "The code had uncommitted changes (a)"),
    "machines": ({"manifest": {"device": "cpu: another"}}, "different machines: cpu: a processor"),
    "commits": ({"manifest": {"commit": "7654321"}}, "different commits"),
    "paper": ({"config": {"protocol": {"name": "paper"}}}, "not obtained under equal conditions"),
    "class order": ({"class_order": [7, 9]}, "the same order"),
}


@pytest.mark.parametrize(("other", "warning"), WARNED.values(), ids=WARNED.keys())
def test_warnings(make: Make, tmp_path: Path, other: dict[str, Any], warning: str) -> None:
    small = {"tasks": 1}
    calm = write_report([make("b", **small)], tmp_path / "calm").read_text(encoding="utf-8")
    assert "Warning" not in calm
    warned = write_report([make("b", **small), make("a", **small, **other)], tmp_path / "warned")
    assert warning in warned.read_text(encoding="utf-8")


def test_conditions_are_told(text: str) -> None:
    conditions = section(text, "### Conditions of digits")
    for line in (
        "| image size | `32` |",
        "| machine | `cpu: a processor, 2 threads` |",
        "| version of torch | `2.9.0` |",
        f"| split sha256 | `{'ef' * 32}` |",
        "| commit | `1234567` |",
        "- finetune: `rank = 4`",
        "- `python -m bench run`",
    ):
        assert line in conditions
    orders = re.findall(r"^- seed (\d): `([\d ]+)`$", conditions, re.MULTILINE)
    assert [seed for seed, _ in orders] == ["0", "1", "2"]


def test_every_metric_is_told_with_its_formula(text: str) -> None:
    for metric in METRICS:
        line = next(line for line in text.splitlines() if line.startswith(f"- **{metric.title}**"))
        assert metric.formula in line
        assert f"{metric.direction} is better" in line


def test_every_link_leads_to_a_file_and_every_file_is_linked(report: Path, text: str) -> None:
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    files = {path.relative_to(report.parent).as_posix() for path in report.parent.rglob("figures/*")}
    assert links == files
    assert len(files) == 8
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
        assert row_of(section(text, f"## digits (scale {scale})"), "a")[-1] == "2"
    assert "\n## digits\n" not in text


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
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths) <= {10, 3, 4}
    links = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert links
    assert all((tmp_path / link).is_file() for link in links)


def test_costs_are_shown_where_they_were_measured(make: Make, tmp_path: Path) -> None:
    cells = [make("a", seed, tasks=1, cost=measured("a", seed, 1, 2.0)) for seed in range(2)]
    costs = section(write_report(cells, tmp_path).read_text(encoding="utf-8"), "### Costs")
    assert "peak memory, training (rss, MiB)" in costs
    assert "cuda" not in costs
    assert row_of(costs, "a")[-1] == "0.20 ± 0.00"
    nothing = write_report([make("a", tasks=1, cost=None)], tmp_path).read_text(encoding="utf-8")
    assert "### Costs" not in nothing
    assert row_of(section(nothing, "## digits"), "a")[6:8] == ["—", "—"]


def test_no_records_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="python -m bench run"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to_is_a_usage_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the report"):
        write_report([make(tasks=1)], tmp_path / "file")


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
