from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.record import Record
from methods.errors import UsageError
from reports.groups import distinct, group

Make = Callable[..., Record]


def protocol(**changes: Any) -> dict[str, Any]:
    base = {"name": "common", "backbone": "micro_vit", "image_size": 32, "epochs": 3, "precision": "fp32"}
    return {"protocol": base | changes}


OTHER_CONDITIONS: dict[str, dict[str, Any]] = {
    "scale": {"config": {"scale": "quick"}},
    "test images": {"config": {"eval_on": "validation"}},
    "device": {"config": {"device": "cuda"}},
    "epochs": {"config": protocol(epochs=5)},
    "image size": {"config": protocol(image_size=64)},
    "precision": {"config": protocol(precision="bf16"), "manifest": {"precision": "bf16"}},
    "backbone": {"config": protocol(backbone="other"), "manifest": {"backbone": "other"}},
    "weights": {"manifest": {"backbone_sha256": "00" * 32}},
    "data": {"manifest": {"data_sha256": "00" * 32}},
    "split": {"manifest": {"split_sha256": "00" * 32}},
    "tasks": {"tasks": 4},
    "options of the benchmark": {"config": {"benchmark": {"name": "digits", "options": {"size": 8}}}},
    "a setting yet unknown": {"config": {"tuned": True}},
}


@pytest.mark.parametrize("other", OTHER_CONDITIONS.values(), ids=OTHER_CONDITIONS.keys())
def test_other_conditions_are_another_table(make: Make, other: dict[str, Any]) -> None:
    base = {"config": protocol()} if "protocol" in other.get("config", {}) else {}
    groups = group([make("a", 0, **base), make("a", 1, **base), make("a", 0, **other)])
    assert sorted(len(g.records) for g in groups) == [1, 2]
    assert len({g.title for g in groups}) == 2
    assert len({g.stem for g in groups}) == 2


def test_a_field_that_is_written_only_where_it_is_used_is_known_without(make: Make) -> None:
    used = {"protocol": {**make("a").config["protocol"], "gelu": "tanh", "drop_last": True}}
    titles = [g.title for g in group([make("a"), make("b", config=used)])]
    expected = ["drop last false, gelu backbone", "drop last true, gelu tanh"]
    assert sorted(titles) == [f"digits, class-incremental ({what})" for what in expected]


def test_titles_name_what_differs_only(make: Make) -> None:
    titles = [
        g.title for g in group([make("a"), make("a", config={"scale": "smoke"}), make("a", 0, "other")])
    ]
    assert titles == [
        "digits, class-incremental (scale full)",
        "digits, class-incremental (scale smoke)",
        "other, class-incremental",
    ]


def test_seeds_commits_machines_and_times_share_a_table(make: Make) -> None:
    later = {
        "commit": "fff",
        "started": "2025-02-01T00:00:00Z",
        "ended": "2025-02-02T00:00:00Z",
        "threads": 8,
    }
    (only,) = group([make("a", 0), make("a", 1, manifest=later)])
    assert [row.method for row in only.rows] == ["a"]


def test_other_hyperparameters_under_one_name_are_another_row(make: Make) -> None:
    other = {"method": {"name": "a", "label": "a", "options": {"rank": 8}}}
    (only,) = group([make("a", 0), make("a", 1, config=other)])
    assert sorted(row.method for row in only.rows) == ["a (rank 4)", "a (rank 8)"]


def test_under_the_papers_recipes_the_rows_differ_and_share_a_table(make: Make) -> None:
    first, second = (protocol(name="paper", epochs=n) for n in (5, 50))
    (only,) = group([make("a", 0, config=first), make("b", 0, config=second)])
    assert {row.method for row in only.rows} == {"a", "b"}
    assert "epochs" not in only.facts


def test_under_the_papers_recipes_two_recipes_of_a_method_are_not_averaged(make: Make) -> None:
    first, second = (protocol(name="paper", epochs=n) for n in (5, 50))
    (only,) = group([make("a", 0, config=first), make("a", 1, config=second)])
    assert sorted(row.method for row in only.rows) == ["a (epochs 5)", "a (epochs 50)"]


def test_a_skipped_cell_joins_the_table_it_belongs_to(make: Make, unfinished: Make) -> None:
    unknown = {"backbone_sha256": None, "data_sha256": None, "split_sha256": None}
    skipped = unfinished("b", 0, "skipped", "No data.", manifest=unknown)
    (only,) = group([make("a"), skipped])
    assert [row.method for row in only.rows] == ["a", "b"]
    elsewhere = unfinished("b", 0, "skipped", "No data.", manifest=unknown, config={"scale": "smoke"})
    assert len(group([make("a"), elsewhere])) == 2


def test_skipped_cells_alone_are_grouped_in_any_order(unfinished: Make) -> None:
    blind = {"backbone_sha256": None, "data_sha256": None, "split_sha256": None}
    cells = [
        unfinished("a", 0, "skipped", "No data.", manifest=blind),
        unfinished("b", 0, "skipped", "No weights.", manifest={"backbone_sha256": None}),
    ]
    (only,) = group(cells)
    assert (only,) == tuple(group(cells[::-1]))


def test_a_finished_cell_without_hashes_is_not_taken_for_equal(make: Make) -> None:
    assert len(group([make("a"), make("b", manifest={"data_sha256": None})])) == 2


def test_best_first_and_unfinished_last(records: list[Record]) -> None:
    digits = next(g for g in group(records) if g.benchmark == "digits")
    assert [row.method for row in digits.rows] == [
        "joint",
        "duallora:gate=none",
        "l2p",
        "finetune",
        "coda-prompt",
        "ncm",
    ]


def test_the_order_of_the_records_does_not_matter(records: list[Record]) -> None:
    shuffled = random.Random(0).sample(records, len(records))
    assert group(shuffled) == group(records)


def test_every_record_is_in_one_table(records: list[Record]) -> None:
    placed = [record for g in group(records) for record in g.records]
    assert sorted(map(id, placed)) == sorted(map(id, records))


def test_the_same_cell_twice_is_refused(make: Make, unfinished: Make) -> None:
    with pytest.raises(UsageError, match="same cell: a on digits, seed 3"):
        group([make("a", 3), unfinished("a", 3, "failed", "It broke.")])


def test_values_are_by_seed_and_class_order_and_all_or_none(make: Make) -> None:
    (only,) = group([make("a", 0), make("a", 1, cost=None)])
    (row,) = only.rows
    orders = {(r.seed, tuple(map(str, r.class_order or ()))): float(r.seed) for r in row.done}
    assert row.by_run(lambda record: float(record.seed)) == orders
    assert row.by_run(lambda record: 1.0 if record.cost else None) == {}


def test_references_and_failures_are_not_ranked(records: list[Record]) -> None:
    digits = next(g for g in group(records) if g.benchmark == "digits")
    assert [row.method for row in digits.ranked] == ["duallora:gate=none", "l2p", "finetune"]


def test_a_reference_comes_first_even_if_it_is_worse(make: Make) -> None:
    (only,) = group([make("a", skill=0.9), make("joint", skill=0.3, joint=True)])
    assert [row.method for row in only.rows] == ["joint", "a"]


def test_a_row_is_contaminated_if_a_cell_of_it_is(make: Make) -> None:
    warned = {"warnings": ["contaminated: seen before"]}
    (only,) = group([make("a", 0), make("a", 1, manifest=warned), make("b", 0)])
    assert {row.method: row.contaminated for row in only.rows} == {"a": True, "b": False}


def test_a_value_is_computed_once_for_each_finished_cell(make: Make, unfinished: Make) -> None:
    (only,) = group([make("a", 0), make("a", 1), unfinished("a", 2, "failed", "It broke.")])
    (row,) = only.rows
    seeds: list[int] = []

    def value(record: Record) -> float:
        seeds.append(record.seed)
        return float(record.seed)

    assert row.values(value) == row.values(value) == [0.0, 1.0]
    assert list(row.by_run(value).values()) == [0.0, 1.0]
    assert seeds == [0, 1]


# ---- several records of one cell ---------------------------------------------------------------

NEVER_READ = {"manifest": {"backbone_sha256": None, "data_sha256": None, "split_sha256": None}}


def folders(*records: Record) -> dict[Path, Record]:
    return {Path("results", "abc"[i]): record for i, record in enumerate(records)}


def test_cells_that_differ_are_all_kept(records: list[Record]) -> None:
    found = distinct({Path(str(i)): record for i, record in enumerate(records)})
    assert sorted(map(id, found.records)) == sorted(map(id, records))
    assert found.copies == found.superseded == ()


def test_equal_records_of_a_cell_are_counted_once(make: Make) -> None:
    found = distinct(folders(make("a", 0), make("a", 1), make("a", 0)))
    assert [record.seed for record in found.records] == [0, 1]
    assert found.copies == (
        "'results/c', with the same record as 'results/a' (a on digits, seed 0); delete what is a copy",
    )


def test_records_of_a_cell_that_differ_are_both_named_and_neither_is_used(
    make: Make, unfinished: Make
) -> None:
    other = unfinished("a", 0, "failed", "It broke.")
    for second in (make("a", 0, skill=0.5), other):
        found = distinct(folders(make("a", 0), second, make("a", 1)))
        assert [record.seed for record in found.records] == [1]
        assert found.copies == (
            "'results/a' and 'results/b', whose records are of the same cell (a on digits, seed 0) "
            "and differ; delete those that do not hold",
        )


@pytest.mark.parametrize("later", ["done", "failed"])
def test_an_attempt_without_data_gives_way_to_one_with_them(later: str, make: Make, unfinished: Make) -> None:
    skipped = unfinished("a", 0, "skipped", "No data here.", **NEVER_READ)
    run = make("a", 0) if later == "done" else unfinished("a", 0, "failed", "It broke.")
    found = distinct(folders(skipped, run))
    assert found.records == (run,)
    assert found.copies == ()
    assert found.superseded == ("'results/a' is an earlier attempt at the cell in 'results/b'",)
    group(found.records)


def test_the_last_of_several_attempts_without_data_is_kept(unfinished: Make) -> None:
    attempts = [
        unfinished(
            "a",
            0,
            "skipped",
            reason,
            manifest={**NEVER_READ["manifest"], "ended": f"2025-01-0{day}T12:00:00+00:00"},
        )
        for day, reason in ((2, "No weights."), (1, "No data."))
    ]
    found = distinct(folders(*attempts))
    assert found.records == (attempts[0],)
    assert found.superseded == ("'results/b' is an earlier attempt at the cell in 'results/a'",)


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("c-lora", "c-lora (arXiv 2502.17920)"),
        ("finetune:adapter=clora", "finetune:adapter=clora (arXiv 2512.24603)"),
        ("finetune:adapter=clora+rank=4", "finetune:adapter=clora+rank=4 (arXiv 2512.24603)"),
        ("duallora", "duallora"),
    ],
)
def test_names_that_could_mislead_have_the_number_of_their_paper(label: str, shown: str, make: Make) -> None:
    (only,) = group([make(label)])
    assert [row.method for row in only.rows] == [shown]
