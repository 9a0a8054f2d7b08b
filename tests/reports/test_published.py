from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks import BENCHMARKS
from bench.benchmarks.splits import class_order
from bench.record import Record
from methods.errors import UsageError
from methods.registry import METHODS
from reports import published
from reports.groups import group
from reports.published import C_LORA, DUALLORA, Comparison, PublishedSource, compare, load
from reports.report import write_report

Make = Callable[..., Record]

PROTOCOL = {
    "name": "paper",
    "backbone": "vit_base_patch16_224.augreg_in21k",
    "image_size": 224,
    "epochs": 20,
    "batch_size": 128,
    "normalisation": "unit",
    "augmentation": "crop-flip",
    "schedule": "coda",
    "head_init": "default",
    "precision": "fp32",
}

CONDITIONS: dict[str, Any] = {
    "implementation": "the authors' code",
    "split": "official",
    "class_order": "CODA-Prompt's rule",
    "seeds": 5,
    "spread": "standard deviation",
    "options": {"lr": 0.0005, "rank": 10},
} | {name: value for name, value in PROTOCOL.items() if name != "name"}


def source(conditions: dict[str, Any] | None = None, **result: Any) -> PublishedSource:
    """A source with one number; the arguments change its conditions and its result."""
    defaults: dict[str, Any] = {
        "method": "inflora",
        "name": "InfLoRA",
        "benchmark": "cifar100",
        "tasks": 2,
        "numbers": [{"metric": "accuracy", "value": 86.5, "spread": 0.7}],
    }
    shared = {k: v for k, v in (CONDITIONS | (conditions or {})).items() if v is not None}
    parts = {"title": "A paper", "label": "A paper", "provenance": "primary", "conditions": shared}
    return PublishedSource.model_validate(parts | {"results": [defaults | result]})


@pytest.fixture
def cell(make: Make) -> Make:
    """A factory of records of InfLoRA under the conditions above; `protocol` and `options` change some."""

    def record(seed: int = 1, method: str = "inflora", **changes: Any) -> Record:
        options = {"lr": 5e-4, "rank": 10} | changes.pop("options", {})
        config = {
            "protocol": PROTOCOL | changes.pop("protocol", {}),
            "method": {"name": method.partition(":")[0], "label": method, "options": options},
        } | changes.pop("config", {})
        fields = {"tasks": 2, "config": config, "class_order": list(class_order(4, seed))} | changes
        return make(method, seed, fields.pop("benchmark", "cifar100"), **fields)

    return record


def compared(records: list[Record], *sources: PublishedSource) -> Comparison:
    (only,) = group(records)
    comparison = compare(only, sources)
    assert comparison is not None
    return comparison


def test_all_the_same_and_known_is_comparable(cell: Make) -> None:
    correct: list[list[int | None]] = [[90, None], [80, 70]]
    comparison = compared([cell(1, correct=correct, counts=[100, 100])], source())
    assert comparison.table is not None
    assert comparison.table.rows == (
        ("inflora", "A paper: InfLoRA", "final accuracy", "86.50 ± 0.70 (sd, n = 5)", "75.00", "yes"),
    )
    assert comparison.reasons == ()


def test_here_is_the_mean_over_finished_seeds_of_the_same_metric(cell: Make) -> None:
    counts, correct = [100, 300], [[90, None], [80, 120]]
    weighted = source(numbers=[{"metric": "accuracy_weighted", "value": 50}])
    records = [cell(seed, correct=correct, counts=counts) for seed in (1, 2)]
    comparison = compared(records, weighted)
    assert comparison.table is not None
    assert comparison.table.rows[0][2:5] == (
        "final accuracy, sample-weighted",
        "50.00 (n = 5)",
        "50.00 ± 0.00",
    )


OTHER_HERE: dict[str, tuple[dict[str, Any], str]] = {
    "scale": ({"config": {"scale": "quick"}}, "scale full vs quick"),
    "test images": ({"config": {"eval_on": "validation"}}, "evaluated on test vs validation"),
    "backbone": (
        {"protocol": {"backbone": "micro_vit"}},
        "backbone vit_base_patch16_224.augreg_in21k vs micro_vit",
    ),
    "image size": ({"protocol": {"image_size": 64}}, "image size 224 vs 64"),
    "epochs": ({"protocol": {"epochs": 4}}, "epochs 20 vs 4"),
    "batch size": ({"protocol": {"batch_size": 16}}, "batch size 128 vs 16"),
    "normalisation": ({"protocol": {"normalisation": "backbone"}}, "normalisation unit vs backbone"),
    "augmentation": ({"protocol": {"augmentation": "flip"}}, "augmentation crop-flip vs flip"),
    "schedule": ({"protocol": {"schedule": "cosine"}}, "schedule coda vs cosine"),
    "heads": ({"protocol": {"head_init": "zero"}}, "head init default vs zero"),
    "precision": ({"protocol": {"precision": "bf16"}}, "precision fp32 vs bf16"),
    "learning rate": ({"options": {"lr": 0.005}}, "lr 0.0005 vs 0.005"),
    "options": ({"method": "inflora:energy=sigma2"}, "options as published vs energy=sigma2"),
    "class order": ({"class_order": [3, 1, 0, 2]}, "class order CODA-Prompt's rule vs another"),
    "split": (
        {"config": {"benchmark": {"name": "cifar100", "options": {"split": "mine.csv"}}}},
        "split official vs by a list that was given",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), OTHER_HERE.values(), ids=OTHER_HERE.keys())
def test_each_difference_is_named_alone(cell: Make, changes: dict[str, Any], reason: str) -> None:
    comparison = compared([cell(**changes)], source())
    assert comparison.reasons == (reason,)
    assert comparison.table is not None
    assert comparison.table.rows[0][-1] == "no (1)"


OTHER_THERE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "implementation": ({"implementation": "a port"}, {}, "implementation a port vs after the authors' code"),
    "part of a tag": (
        {"backbone": "augreg_in21k"},
        {},
        "backbone augreg_in21k (not the whole tag) vs vit_base_patch16_224.augreg_in21k",
    ),
    "own order": ({"class_order": "own order"}, {}, "class order own order vs CODA-Prompt's rule"),
    "departures": ({"departs": ["drops a batch"]}, {}, "drops a batch"),
    "doubt": ({}, {"doubt": "rows may be swapped"}, "rows may be swapped"),
}


@pytest.mark.parametrize(("conditions", "result", "reason"), OTHER_THERE.values(), ids=OTHER_THERE.keys())
def test_what_the_source_did_otherwise_is_named(
    cell: Make, conditions: dict[str, Any], result: dict[str, Any], reason: str
) -> None:
    assert compared([cell()], source(conditions, **result)).reasons == (reason,)


UNKNOWN = {name: name.replace("_", " ") for name in CONDITIONS if name not in ("seeds", "spread")}


@pytest.mark.parametrize(("name", "said"), UNKNOWN.items(), ids=UNKNOWN.keys())
def test_what_a_source_does_not_say_is_never_equal(cell: Make, name: str, said: str) -> None:
    said = "hyper-parameters" if name == "options" else said
    assert compared([cell()], source({name: None})).reasons == (f"unknown: {said}",)


def test_what_is_not_recorded_here_is_never_equal(cell: Make) -> None:
    protocol = {name: value for name, value in PROTOCOL.items() if name != "schedule"}
    assert compared([cell(config={"protocol": protocol})], source()).reasons == ("unknown: schedule",)


def test_seed_0_follows_both_rules_for_class_orders(cell: Make) -> None:
    for rule in ("own order", "CODA-Prompt's rule"):
        assert compared([cell(0)], source({"class_order": rule})).reasons == ()
    both = compared([cell(0), cell(1)], source({"class_order": "own order"}))
    assert both.reasons == ("class order own order vs CODA-Prompt's rule",)


@pytest.mark.parametrize("selection", ["sample", "batch"])
@pytest.mark.parametrize("published_by", ["image", "batch", None])
def test_prompts_chosen_by_batch_are_not_those_chosen_by_image(
    cell: Make, selection: str, published_by: str | None
) -> None:
    record = cell(method="l2p", options={"selection": selection})
    reasons = compared([record], source({"prompts_chosen_by": published_by}, method="l2p")).reasons
    here = "batch" if selection == "batch" else "image"
    expected = f"prompts chosen by {published_by} vs {here}" if published_by else "unknown: prompts chosen by"
    assert reasons == (() if published_by == here else (expected,))


def test_results_for_another_number_of_tasks_are_mentioned_only(cell: Make) -> None:
    comparison = compared([cell()], source(tasks=10), source(tasks=20))
    assert comparison.table is None
    assert comparison.notes == ("Published numbers of these methods are for 10, 20 tasks, not for 2.",)


def test_an_unknown_number_of_tasks_is_not_ours(cell: Make) -> None:
    assert compared([cell()], source(tasks=None)).table is None


def test_a_benchmark_without_published_numbers_is_one_sentence(make: Make) -> None:
    comparison = compared([make("inflora", tasks=2)], source())
    assert comparison == Comparison(None, (), ("No source in results/published has numbers on digits.",))


def test_other_methods_have_no_line(cell: Make) -> None:
    comparison = compared([cell(method="ncm"), cell()], source())
    assert comparison.table is not None
    assert [line[0] for line in comparison.table.rows] == ["inflora"]


@pytest.mark.parametrize("benchmark", ["digits", "cifar100"])
def test_of_duallora_it_says_that_nothing_could_be_verified(cell: Make, benchmark: str) -> None:
    records = [cell(method="duallora:gate=none", benchmark=benchmark), cell(benchmark=benchmark)]
    assert DUALLORA in compared(records, source()).notes
    assert DUALLORA not in compared(records[1:], source()).notes


def test_a_value_in_a_form_that_no_metric_has_is_not_comparable(cell: Make) -> None:
    for number, name in (({"form": "best of all"}, "best of all"), ({}, "unknown")):
        comparison = compared([cell()], source(numbers=[number | {"value": 1}]))
        assert comparison.table is not None
        assert comparison.table.rows[0][2:] == (name, "1.00 (n = 5)", "—", "no")


def test_equal_reasons_are_listed_once(cell: Make) -> None:
    numbers = [{"metric": "accuracy", "value": 1}, {"metric": "forgetting", "value": 2}]
    comparison = compared([cell(config={"scale": "quick"})], source(numbers=numbers))
    assert comparison.reasons == ("scale full vs quick",)
    assert comparison.table is not None
    assert [line[-1] for line in comparison.table.rows] == ["no (1)", "no (1)"]


def test_the_nearest_statement_of_a_condition_holds() -> None:
    text = {
        "title": "t",
        "label": "l",
        "provenance": "primary",
        "conditions": {"epochs": 1, "batch_size": 1, "image_size": 1, "seeds": 1},
        "on": {"cifar100": {"epochs": 2, "batch_size": 2, "image_size": 2}},
        "of": {"InfLoRA": {"epochs": 3, "batch_size": 3}},
        "results": [
            {
                "name": "InfLoRA",
                "benchmark": "cifar100",
                "conditions": {"epochs": 4},
                "numbers": [{"value": 1}],
            }
        ],
    }
    read = PublishedSource.model_validate(text)
    conditions = read.conditions_of(read.results[0])
    assert (conditions.epochs, conditions.batch_size, conditions.image_size, conditions.seeds) == (4, 3, 2, 1)


# ---- the report --------------------------------------------------------------------------------


def test_the_report_shows_table_reasons_and_notes_escaped(
    cell: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = source({"implementation": "<b>|*theirs*"})
    monkeypatch.setattr(published, "load", lambda: (evil,))
    text = write_report([cell()], tmp_path).read_text(encoding="utf-8")
    part = text[text.index("### Published numbers") :]
    assert "| inflora | A paper: InfLoRA | final accuracy | 86.50 ± 0.70 (sd, n = 5) |" in part
    assert r"- (1) implementation &lt;b&gt;\|\*theirs\* vs after the authors' code" in part


def test_without_sources_there_is_no_section(
    cell: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "load", lambda: ())
    assert "Published numbers" not in write_report([cell()], tmp_path).read_text(encoding="utf-8")


# ---- the files ---------------------------------------------------------------------------------


def test_an_absent_folder_has_no_sources(tmp_path: Path) -> None:
    assert load(tmp_path / "nowhere") == ()


BAD = {
    "not TOML": ("title = ", "invalid"),
    "unknown metric": ('metric = "acuracy"', "did you mean 'accuracy'"),
    "mistyped condition": ('[conditions]\nbackbon = "x"', "conditions.backbon"),
    "above 100": ("value = 101", "results.0.numbers.0.value"),
    "no results": ("", "results"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, change: str, said: str) -> None:
    number = change if change.startswith(("metric", "value")) else ""
    extra = change if change.startswith(("[", "title")) else ""
    result = f'[[results]]\nname = "n"\nbenchmark = "b"\n[[results.numbers]]\n{number}\n'
    result += "" if change.startswith("value") else "value = 1\n"
    head = 'title = "t"\nlabel = "l"\nprovenance = "primary"\n'
    (tmp_path / "bad.toml").write_text(head + extra + "\n" + (result if change else ""))
    with pytest.raises(UsageError, match=r"bad\.toml.*correct the file") as error:
        load(tmp_path)
    assert said.lower() in str(error.value).lower()


#: What the sources compare with and this project does not have.
OTHERS = {
    *("FT", "FT++", "L2P++", "Deep L2P++", "LAE", "HiDe-Prompt", "SD-LoRA", "Joint"),
    "C-LoRA (Smith et al., arXiv 2304.06027)",
    "InfLoRA with a random design",
    "InfLoRA designed in the new task's space only",
    "InfLoRA designed outside the old tasks' space only",
}


@pytest.mark.parametrize("paper", load(), ids=lambda paper: paper.label)
def test_every_source_is_consistent(paper: PublishedSource) -> None:
    for result in paper.results:
        assert result.benchmark in BENCHMARKS
        assert result.method in METHODS if result.method else result.name in OTHERS
        options = paper.conditions_of(result).options or {}
        assert set(options) <= set(
            METHODS[result.method].load().Hyper.__pydantic_fields__ if result.method else []
        )
    assert set(paper.on) <= {result.benchmark for result in paper.results}
    assert set(paper.of) <= {result.name for result in paper.results}
    keys = [(r.name, r.benchmark, r.tasks) for r in paper.results]
    assert len(set(keys)) == len(keys)


def test_there_are_sources_and_none_has_a_number_of_duallora() -> None:
    assert len(load()) == len(list(published.FOLDER.glob("*.toml"))) > 10
    assert not [
        r for s in load() for r in s.results if r.method == "duallora" or "dual-lora" in r.name.lower()
    ]


def test_a_row_called_c_lora_says_whose_it_is_and_is_none_of_ours() -> None:
    """Two methods have the name; the published numbers are of that which this project does not have."""
    called = [
        r for s in load() for r in s.results if r.name.lower().startswith(("c-lora", "c_lora", "clora"))
    ]
    assert called
    assert {r.name for r in called} == {"C-LoRA (Smith et al., arXiv 2304.06027)"}
    assert not [r for s in load() for r in s.results if r.method == "c-lora"]


@pytest.mark.parametrize("benchmark", ["cifar100", "imagenet-r"])
def test_numbers_of_the_other_c_lora_are_never_beside_ours(cell: Make, benchmark: str) -> None:
    for label in ("c-lora", "c-lora:old_path=live"):
        comparison = compared([cell(method=label, benchmark=benchmark, tasks=10)], *load())
        assert comparison.table is None
        assert C_LORA in comparison.notes
    assert C_LORA not in compared([cell()], *load()).notes


def test_the_official_code_under_its_own_recipe_with_its_own_order_is_comparable(make: Make) -> None:
    """The one case that this harness can reach so far: InfLoRA's logs, seed 0."""
    options = {"lr": 5e-4, "rank": 10, "lamb": 0.95, "lame": 1.0}
    config = {
        "protocol": PROTOCOL,
        "method": {"name": "inflora", "label": "inflora", "options": options},
    }
    record = make("inflora", 0, "cifar100", tasks=10, config=config, class_order=list(range(100)))
    comparison = compared([record], *load())
    assert comparison.table is not None
    assert {line[1] for line in comparison.table.rows if line[-1] == "yes"} == {
        "InfLoRA's logs: InfLoRA",
        "InfLoRA paper: InfLoRA",
    }
