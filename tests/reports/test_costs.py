from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.record import Record
from reports import costs
from reports.groups import Group, group
from reports.tables import Table, compared, headline
from reports.warnings import warnings
from tests.reports.conftest import MANIFEST, measured, with_costs

Make = Callable[..., Record]


def one_group(records: list[Record]) -> Group:
    (only,) = group(records)
    return only


def line_of(table: Table | None, *heads: str) -> dict[str, str]:
    assert table is not None
    row = next(row for row in table.rows if row[: len(heads)] == heads)
    return dict(zip(table.columns, row, strict=True))


def of_cuda(cost: dict[str, Any]) -> dict[str, Any]:
    memory = {
        "kind": "cuda",
        "training": {"peak": 7 * 2**20, "baseline": 2 * 2**20, "reserved": 9 * 2**20},
    }
    return cost | {"peak_memory": memory}


@pytest.fixture(scope="module")
def two(make: Make) -> Group:
    cells = [make("a", seed, cost=measured("a", seed, 3, 1.5, 0.25)) for seed in range(2)]
    return one_group([*cells, make("b", cost=None)])


def test_latency_is_of_all_samples_after_the_first_and_the_last_task(two: Group) -> None:
    samples = {
        learnt: [
            seconds
            for record in two.records
            if record.cost and record.cost.latency
            for at in record.cost.latency
            if (at.batch, at.experiences) == (32, learnt)
            for seconds in at.model.samples
        ]
        for learnt in (1, 3)
    }
    table = costs.latency(two)
    for learnt, seconds in samples.items():
        line = line_of(table, "a", "32", str(learnt))
        assert line["n"] == "40"
        for title, percent in (("median (ms)", 50), ("p95 (ms)", 95), ("p99 (ms)", 99)):
            assert line[title] == f"{1000 * np.percentile(seconds, percent):.2f}"
    assert table is not None
    assert {row[0] for row in table.rows} == {"a"}
    assert [row[1:3] for row in table.rows] == [("1", "1"), ("1", "3"), ("32", "1"), ("32", "3")]


@pytest.mark.parametrize(
    ("widths", "shown"),
    [
        ([0.004, 0.015], "1.5"),
        ([0.004, 0.031], "3.1 (wide)"),
        ([0.004, None], "under 5 rounds"),
    ],
)
def test_how_well_a_ratio_is_known_is_said_beside_it(widths: list[float | None], shown: str) -> None:
    assert costs.known_to(widths) == shown


def test_kinds_of_memory_never_share_a_column(make: Make) -> None:
    members = one_group(
        [make("a", cost=of_cuda(measured("a", 0, 3, 1.0))), make("b", cost=measured("b", 0, 3, 1.0))]
    )
    table = costs.memory(members)
    on_gpu, resident = line_of(table, "a"), line_of(table, "b")
    assert on_gpu["training, above the baseline (allocated on the GPU, MiB)"] == "5"
    assert on_gpu["training, baseline (allocated on the GPU, MiB)"] == "2"
    assert on_gpu["training, peak reserved by CUDA's allocator (MiB)"] == "9"
    assert on_gpu["training, above the baseline (resident, MiB)"] == "—"
    assert resident["training, above the baseline (allocated on the GPU, MiB)"] == "—"
    titles = [quantity.title for quantity in compared(members) if "memory" in quantity.title]
    assert titles == [
        "peak memory of training (allocated on the GPU, MiB)",
        "peak memory of training (resident, MiB)",
    ]


def test_what_was_not_measured_has_no_column(two: Group) -> None:
    memory, training = costs.memory(two), costs.training(two)
    assert memory is not None
    assert training is not None
    assert "GPU" not in "".join((*memory.columns, *training.columns))


def test_training_is_shown_per_task_and_per_image(make: Make) -> None:
    cost = with_costs(
        measured("a", 0, 2, 1.0),
        train_seconds=[4.0, 6.0],
        prepare_seconds=[1.0, 2.0],
        consolidate_seconds=[0.5, 0.0],
        train_images=[100, 150],
        forward_images=[150, 200],
        cached_images=[50, 100],
        energy_joules=[90.0, 110.0],
        eval_seconds=[1.0, 3.0],
    )
    assert line_of(costs.training(one_group([make("a", tasks=2, cost=cost)])), "a") == {
        "method": "a",
        "whole stream (s)": "10.0",
        "training (s per task)": "5.00",
        "preparation (s per task)": "1.50",
        "consolidation (s per task)": "0.25",
        "images/s": "25.0",
        "passes per image": "1.40",
        "passes without kept features": "2.00",
        "energy of the whole GPU (J per task)": "100",
        "evaluation after the last task (s)": "3.00",
    }


def test_sizes_are_those_after_the_first_and_the_last_task(two: Group) -> None:
    assert list(line_of(costs.sizes(two), "a").values())[1:] == [
        *("0.15", "0.20", "2.000"),
        *("10,000", "10,020"),
        *(f"{80_000 / 2**10:.1f}", f"{240_000 / 2**10:.1f}"),
        *(f"{4e6 / 2**20:.1f}", f"{4.16e6 / 2**20:.1f}"),
    ]


def test_a_cost_that_is_missing_for_one_task_has_no_total_and_no_mean(make: Make) -> None:
    cost = with_costs(measured("a", 0, 2, 1.0), train_seconds=[4.0, None], eval_seconds=[1.0, 3.0])
    line = line_of(costs.training(one_group([make("a", tasks=2, cost=cost)])), "a")
    assert "whole stream (s)" not in line
    assert line["evaluation after the last task (s)"] == "3.00"


def test_nothing_measured_is_no_part(make: Make) -> None:
    assert costs.parts(one_group([make("a", cost=None)])) == []


def together(method: str) -> dict[str, Any]:
    cost = measured(method, 0, 3, 1.0)
    return cost | {"conditions": cost["conditions"] | {"beside": ["a", "b"]}}


def test_rows_of_different_sessions_compare_by_ratio_only(make: Make) -> None:
    apart = one_group([make(name, cost=measured(name, 0, 3, 1.0)) for name in "ab"])
    same = one_group([make(name, cost=together(name)) for name in "ab"])
    assert costs.SESSIONS_NOTE in costs.timed_under(apart)
    assert costs.SESSIONS_NOTE not in costs.timed_under(same)
    (sentence,) = costs.timed_under(same)
    for part in (MANIFEST["device"], "fp32", "2 threads", "32 pixels", "4 rounds of 5 calls", "a, b"):
        assert part in sentence


def test_other_threads_are_a_warning(make: Make) -> None:
    other = together("b")
    other["conditions"] |= {"threads": 8}
    members = one_group([make("a", cost=together("a")), make("b", cost=other)])
    (warning,) = [text for text in warnings(members) if "Latencies" in text]
    assert "2 threads" in warning
    assert "8 threads" in warning
    calm = one_group([make(name, cost=together(name)) for name in "ab"])
    assert warnings(calm) == []


def test_a_warm_up_that_had_not_settled_is_a_warning(make: Make) -> None:
    cost = together("a")
    cost["latency"][1]["stable"] = False
    (warning,) = warnings(one_group([make("a", 4, cost=cost)]))
    assert "a, seed 4, batch 1 after task 3" in warning


def test_cells_whose_inference_is_still_to_be_timed_are_a_warning(make: Make) -> None:
    cells = [make("a", 4, cost=together("a")), make("b", 4, cost=together("b") | NOT_TIMED)]
    (warning,) = warnings(one_group(cells))
    assert warning.startswith("Inference was not timed: b. ")
    assert warnings(one_group([make("a", 4)])) == []  # a record in which no operations were counted either


NOT_TIMED: dict[str, Any] = {"latency": None, "conditions": None}


def test_too_few_rounds_are_a_warning(make: Make) -> None:
    cost = together("a")
    for timed in cost["latency"]:
        timed["rounds"] = 2
    (warning,) = warnings(one_group([make("a", 4, cost=cost)]))
    assert warning == "Latencies of 2 rounds show that timing works, not how long inference takes."


def test_lower_costs_are_better(make: Make) -> None:
    ratios = {"cheap": 1.1, "dear": 3.0}
    cells = [
        make(name, seed, cost=measured(name, seed, 3, ratio))
        for name, ratio in ratios.items()
        for seed in range(3)
    ]
    table = headline(one_group(cells))
    ratio = table.columns.index("latency ratio to the plain ViT, batch 1 ↓")
    (place,) = [(i, j) for i, j in table.bold if j == ratio]
    assert table.rows[place[0]][1] == "cheap"


def test_the_costs_of_a_cell_that_failed_are_in_no_table(make: Make, unfinished: Make) -> None:
    broken = unfinished("b", 0, "failed", "It broke.").model_dump(by_alias=True)
    broken["cost"] = measured("b", 0, 3, 1.0)
    members = one_group([make("a", cost=None), Record.model_validate(broken)])
    assert costs.parts(members) == []
    assert [quantity.title for quantity in compared(members) if "accuracy" not in quantity.title] == [
        "forgetting (points)"
    ]
