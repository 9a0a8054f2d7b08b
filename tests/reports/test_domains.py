"""Results of streams of domains in the report: named by domain, and never beside those of new classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bench.record import Record
from reports import published, tables
from reports.groups import group
from reports.report import render_report

Make = Callable[..., Record]
PHOTO, SKETCH, PAINT = NAMES = ("photo", "sketch", "painting")


def domain_record(make: Make, method: str, seed: int, order: Sequence[str] = NAMES, **changes: Any) -> Record:
    """Three domains of 10, 20 and 40 images; each seed has two hits more than the one before."""
    counts = [10, 20, 40]
    correct = [[9, 4, 8], [6, 16 + seed, 12], [5, 12, 30 + 2 * seed]]
    config = {"scenario": "domain-incremental", "domains": list(order), "task_sizes": [6, 6, 6]}
    fields = {"scenario": "domain-incremental", "correct": correct, "counts": counts} | changes
    return make(method, seed, config=config, **fields)


@pytest.fixture
def domains(make: Make) -> list[Record]:
    orders = (NAMES, (SKETCH, PAINT, PHOTO))
    return [domain_record(make, m, s, orders[s]) for m in ("finetune", "color") for s in (0, 1)]


def test_two_scenarios_of_one_benchmark_are_two_tables(make: Make, domains: list[Record]) -> None:
    groups = group([*domains, make("finetune"), make("color")])
    assert [g.title for g in groups] == ["digits, class-incremental", "digits, domain-incremental"]
    assert [len(g.records) for g in groups] == [2, 4]


def test_seeds_with_other_orders_of_domains_share_a_row_and_are_paired_by_them(domains: list[Record]) -> None:
    (only,) = group(domains)
    assert [len(row.done) for row in only.rows] == [2, 2]
    runs = only.rows[0].by_run(lambda record: 1.0)
    assert set(runs) == {(0, NAMES), (1, (SKETCH, PAINT, PHOTO))}


def test_the_headline_names_both_means_and_the_domains_to_come(domains: list[Record]) -> None:
    (only,) = group(domains)
    headline = tables.headline(only)
    titles = [title for title in headline.columns if "%" in title or "points" in title]
    assert titles == [
        "final accuracy, mean over domains (%) ↑",
        "final accuracy, pooled over the images of all domains (%) ↑",
        "forgetting (points) ↓",
        "accuracy on domains not learnt yet (%) ↑",
    ]
    cells = dict(zip(headline.columns, headline.rows[0], strict=True))
    # a[T] = (0.5, 0.6, 0.75) and (0.5, 0.6, 0.8); pooled 47/70 and 49/70
    assert cells[titles[0]].startswith("62.50")
    assert cells[titles[1]].startswith("68.57")
    assert cells[titles[3]].startswith("25.00")  # ((0.2 + 0.2) / 2 + 0.3) / 2


def test_each_domain_has_its_accuracy_and_its_forgetting_whatever_its_place(domains: list[Record]) -> None:
    (only,) = group(domains)
    table = tables.by_domain(only)
    assert table is not None
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["photo: accuracy (%) ↑"].startswith(
        "65.00"
    )  # first with seed 0: 5/10; last with seed 1: 32/40
    assert cells["photo: forgetting (points) ↓"] == "40.00"  # with seed 0 only: 0.9 - 0.5
    assert cells["painting: forgetting (points) ↓"] == "25.00"  # with seed 1 only: 17/20 - 12/20
    assert cells["sketch: forgetting (points) ↓"].startswith("30.00")  # 16/20 - 12/20 and 9/10 - 5/10


def test_class_incremental_results_have_no_table_of_domains(make: Make) -> None:
    (only,) = group([make("finetune")])
    assert tables.by_domain(only) is None
    assert not any("domains" in title for title in tables.other_metrics(only).columns)


def test_one_test_set_for_all_domains_has_no_forgetting_and_no_table_by_domain(make: Make) -> None:
    records = [
        domain_record(make, method, 0, correct=[[2], [3], [4]], counts=[5])
        for method in ("finetune", "color")
    ]
    (only,) = group(records)
    cells = dict(zip(tables.headline(only).columns, tables.headline(only).rows[0], strict=True))
    assert cells["final accuracy, mean over domains (%) ↑"].startswith("80.00")
    assert cells["forgetting (points) ↓"] == "—"
    assert not any(row.is_reference for row in only.rows)
    assert tables.by_domain(only) is None


def test_published_numbers_are_of_class_incremental_streams_and_stay_away(make: Make) -> None:
    (only,) = group([domain_record(make, "l2p", 0, benchmark="cifar100", tasks=3)])
    comparison = published.compare(only, published.load())
    assert comparison is not None
    assert comparison.table is None
    assert comparison.notes == (published.OF_CLASSES,)


def test_the_report_lists_the_order_of_the_domains(domains: list[Record]) -> None:
    text = render_report(domains)["report.md"].decode()
    assert "## digits, domain-incremental\n" in text
    assert "Domains in the order learnt:" in text
    assert "- seed 1: `sketch, painting, photo`" in text
    assert "### By domain" in text
    assert "accuracy on domains not learnt yet" in text


def test_an_upper_bound_has_no_rank(make: Make) -> None:
    told = {"warnings": ["upper bound: the task of every test image was given (routing=oracle)"]}
    best = domain_record(make, "color:routing=oracle", 0, correct=[[10, 20, 40]] * 3, manifest=told)
    (only,) = group([best, domain_record(make, "color", 0), domain_record(make, "finetune", 0)])
    headline = tables.headline(only)
    assert headline.rows[0][:2] == ("—", "color:routing=oracle")
    assert [row.method for row in only.ranked] == ["color", "finetune"]
    assert any("color:routing=oracle: an upper bound" in note for note in tables.notes(only))
