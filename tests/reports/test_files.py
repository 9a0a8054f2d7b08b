from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from statistics import median

import pytest

import bench
from bench.metrics import METRICS
from bench.record import Record, write
from reports import tables
from reports.files import as_csv, render_cells, render_tables, sheets
from reports.groups import group
from reports.report import write_report
from reports.tables import Table
from tests.reports.conftest import Make, measured, with_costs


@pytest.fixture(scope="module")
def out(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(records, tmp_path_factory.mktemp("report")).parent


@pytest.fixture
def costly(make: Make) -> list[Record]:
    return [make("a", seed, cost=measured("a", seed, 3, 2.0)) for seed in range(2)] + [make("b", cost=None)]


def lines_of(path: Path) -> list[dict[str, str]]:
    return parsed(path.read_bytes())


def parsed(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_every_table_of_the_report_has_its_files(out: Path, records: list[Record]) -> None:
    text = (out / "report.md").read_text(encoding="utf-8")
    shown = len(re.findall(r"^\| (rank \| )?method \|", text, re.MULTILINE))
    for kind in ("csv", "tex"):
        assert len(list((out / "tables").glob(f"*.{kind}"))) == shown
    stems = {g.stem for g in group(records)}
    names = {path.stem for path in (out / "tables").iterdir()}
    assert {name for name in names if name.endswith("-headline")} == {f"{stem}-headline" for stem in stems}


def test_a_new_kind_of_table_has_files_too(make: Make) -> None:
    gate = {"gate": {"meaning": "A gate.", "values": [0.1, 0.2, 0.3]}}
    groups = group([make("a", seed, diagnostics=gate) for seed in range(2)])
    assert {f"{groups[0].stem}-diagnostics.{kind}" for kind in ("csv", "tex")} <= render_tables(groups).keys()


def test_a_csv_file_holds_the_cells_of_its_table(out: Path, records: list[Record]) -> None:
    digits = next(g for g in group(records) if g.benchmark == "digits")
    with (out / "tables" / f"{digits.stem}-headline.csv").open(encoding="utf-8", newline="") as file:
        lines = [tuple(line) for line in csv.reader(file)]
    headline = tables.headline(digits)
    assert lines == [headline.columns, *headline.rows]


def test_a_latex_file_names_its_table(out: Path, records: list[Record]) -> None:
    digits = next(g for g in group(records) if g.benchmark == "digits")
    text = (out / "tables" / f"{digits.stem}-paired.tex").read_text(encoding="utf-8")
    assert (
        r"\caption{Differences from duallora:gate=none on digits, class-incremental, paired by seed." in text
    )
    assert f"\\label{{tab:{digits.stem}-paired}}" in text
    assert [sheet.name for sheet in sheets(digits)][:2] == ["headline", "paired"]


def test_formulas_are_guarded_and_numbers_are_not() -> None:
    text = as_csv(Table(("method", "=a"), (("@b\nc", "-1.0 ± 2.0"), ('"d"', "1,000"))))
    assert list(csv.reader(io.StringIO(text))) == [
        ["method", "'=a"],
        ["'@b c", "-1.0 ± 2.0"],
        ['"d"', "1,000"],
    ]


def test_cells_have_the_raw_numbers(out: Path, records: list[Record]) -> None:
    lines = {(line["benchmark"], line["method"], line["seed"]): line for line in lines_of(out / "cells.csv")}
    assert len(lines) == len(records)
    for record in records:
        line = lines[record.benchmark, record.method, str(record.seed)]
        assert (line["status"], line["reason"]) == (record.status, record.reason or "")
        for metric in METRICS:
            value = (record.metrics or {}).get(metric.name)
            cell = line[f"{metric.name}_fraction"]
            assert cell == "" if value is None else float(cell) == value


def test_cells_have_what_was_measured(costly: list[Record]) -> None:
    lines = parsed(render_cells(group(costly)))
    _, line, other = sorted(lines, key=lambda line: (line["method"], line["seed"]))
    cost = costly[1].cost
    assert cost is not None
    last = next(at for at in cost.latency or () if at.batch == 32 and at.experiences == 3)
    assert float(line["latency_batch_32_median_seconds"]) == median(last.model.samples)
    assert float(line["latency_batch_32_plain_vit_median_seconds"]) == median(last.plain.samples)
    assert float(line["latency_batch_32_ratio_to_plain_vit"]) == last.ratio
    seconds = [experience.train_seconds or 0.0 for experience in cost.experiences]
    assert float(line["train_total_seconds"]) == math.fsum(seconds)
    numbers = {
        "peak_memory_kind": "rss",
        "peak_memory_training_baseline_bytes": "400000000",
        "prediction_flops_per_image": "200000000",
        "plain_vit_flops_per_image": "100000000",
        "parameters_stored_elements": "60000",
        "parameters_trainable_elements": "10020",
    }
    assert {name: line[name] for name in numbers} == numbers
    assert other["method"] == "b"
    assert {value for name, value in other.items() if "latency" in name or name in numbers} == {""}


def test_cells_have_their_conditions(out: Path) -> None:
    line = lines_of(out / "cells.csv")[0]
    conditions = {
        "backbone": "micro_vit",
        "protocol": "common",
        "scale": "full",
        "image_size_pixels": "32",
        "precision": "fp32",
        "device": "cpu: a processor",
        "commit": "1234567",
        "uncommitted_changes": "False",
        "method.rank": "4",
        "protocol.epochs": "3",
    }
    assert {name: line[name] for name in conditions} == conditions


def test_cells_have_the_columns_of_a_loaded_frame(costly: list[Record], tmp_path: Path) -> None:
    for record in costly:
        write(record, tmp_path / f"{record.method}-{record.seed}")
    frame = bench.load(tmp_path)
    table, *columns = next(csv.reader(io.StringIO(render_cells(group(costly)).decode())))
    cell, *loaded = frame.columns
    assert (table, cell) == ("table", "cell")
    assert columns == loaded


def test_rows_of_one_method_are_named_as_in_the_tables(make: Make) -> None:
    other = {"method": {"name": "a", "label": "a", "options": {"rank": 8}}}
    lines = parsed(render_cells(group([make("a", 0), make("a", 0, config=other)])))
    assert sorted((line["method"], line["method.rank"]) for line in lines) == [
        ("a (rank 4)", "4"),
        ("a (rank 8)", "8"),
    ]


def test_a_size_beyond_64_bits_is_written_whole(make: Make) -> None:
    huge = 2**63
    cost = with_costs(measured("a", 0, 3, 1.0), flops=[1, 1, huge])
    (line,) = parsed(render_cells(group([make("a", cost=cost)])))
    assert line["prediction_flops_per_image"] == str(huge)


def test_cells_are_safe_for_spreadsheets(make: Make, unfinished: Make) -> None:
    evil = '=HYPERLINK("http://e.org")'
    config = {"method": {"name": "a", "options": {evil: evil}}}
    groups = group(
        [
            make(evil, manifest={"device": evil}, config=config),
            unfinished("b", 0, "failed", f"{evil}\nmore", benchmark=evil),
        ]
    )
    text = io.StringIO(render_cells(groups).decode(), newline="")
    cells = [cell for line in csv.reader(text) for cell in line]
    assert not [cell for cell in cells if re.match(r"[=+@\s]", cell)]
    assert f"'{evil} more" in cells
