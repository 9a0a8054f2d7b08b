from __future__ import annotations

from collections.abc import Callable

from bench.record import Record
from reports.groups import Group, group
from reports.summary import answer, overview

Make = Callable[..., Record]


def finals(make: Make, method: str, *percents: int, **fields: object) -> list[Record]:
    """A cell of one task per seed, with these final accuracies."""
    return [
        make(method, seed, tasks=1, correct=[[percent]], counts=[100], **fields)
        for seed, percent in enumerate(percents)
    ]


def one_group(*cells: list[Record]) -> Group:
    (only,) = group([record for records in cells for record in records])
    return only


def test_the_best_is_named_with_its_lead_and_the_interval(make: Make) -> None:
    # differences 4, 5, 6: mean 5, half-width 4.30265 / sqrt(3) = 2.48
    sentences = answer(one_group(finals(make, "a", 84, 85, 86), finals(make, "b", 80, 80, 80)))
    assert sentences == (
        "a is best: 85.00 %, 5.00 points above b on 3 common seeds "
        "(95 % interval of the difference 2.52 to 7.48)."
    )


def test_methods_that_are_not_significantly_different_are_named_and_none_is_best(make: Make) -> None:
    sentences = answer(
        one_group(finals(make, "a", 81, 82, 83), finals(make, "b", 80, 80, 80), finals(make, "c", 70, 70, 70))
    )
    assert sentences.startswith("a has the highest mean: 82.00 %, 2.00 points above b")
    assert sentences.endswith("It is not significantly different from: b.")


def test_a_method_further_down_can_be_as_good_as_the_first(make: Make) -> None:
    """Its mean is lower than the runner-up's, but it varies too much for a claim."""
    cells = (("a", (90, 90, 90)), ("b", (88, 88, 88)), ("c", (95, 60, 70)))
    sentences = answer(one_group(*(finals(make, method, *percents) for method, percents in cells)))
    assert sentences.startswith("a has the highest mean: 90.00 %, 2.00 points above b")
    assert sentences.endswith("It is not significantly different from: c.")


def test_a_method_that_is_significantly_better_on_common_seeds_is_named_so(make: Make) -> None:
    """The highest mean is due to a seed that the other method does not have."""
    sentences = answer(one_group(finals(make, "a", 80, 81, 95), finals(make, "b", 83, 84)))
    assert sentences.startswith("a has the highest mean: 85.33 %, 3.00 points below b on 2 common seeds")
    assert "On common seeds it is significantly worse than: b." in sentences
    assert "not significantly different" not in sentences


def test_one_common_seed_is_no_claim(make: Make) -> None:
    sentences = answer(one_group(finals(make, "a", 90), finals(make, "b", 80)))
    assert sentences == (
        "a has the highest mean: 90.00 %, 10.00 points above b on the one common seed. "
        "Fewer than two common seeds, so no interval, with: b."
    )


def test_no_common_seed_and_no_other_method_are_said(make: Make) -> None:
    elsewhere = [make("b", 7, tasks=1, correct=[[50]], counts=[100])]
    sentences = answer(one_group(finals(make, "a", 90), elsewhere))
    assert "ahead of b, with which it has no seed in common" in sentences
    assert sentences.endswith("See the warnings.")
    assert answer(one_group(finals(make, "a", 90))) == "only a has a result to compare: 90.00 %."


def test_the_lead_is_that_on_common_seeds(make: Make) -> None:
    sentences = answer(one_group(finals(make, "a", 80, 80, 95), finals(make, "b", 82, 82)))
    assert sentences.startswith("a has the highest mean: 85.00 %, 2.00 points below b on 2 common seeds")


def test_equal_means_are_level(make: Make) -> None:
    sentences = answer(one_group(finals(make, "a", 80, 70), finals(make, "b", 80, 70)))
    assert sentences == (
        "a has the highest mean: 75.00 %, level with b. It is not significantly different from: b."
    )


def test_a_reference_is_never_best(make: Make) -> None:
    joint = [make("joint", seed, skill=0.99, joint=True) for seed in range(2)]
    sentences = answer(one_group(joint, [make("a", seed, skill=0.5) for seed in range(2)]))
    assert sentences.startswith("only a has a result to compare")
    assert "For reference, joint, trained on all tasks at once:" in sentences


def test_contamination_is_said(make: Make) -> None:
    warned = {"warnings": ["contaminated: seen before"]}
    assert answer(one_group(finals(make, "a", 90, manifest=warned))).endswith(
        "Contaminated, see the warnings."
    )


def test_nothing_finished(unfinished: Make) -> None:
    failed = [unfinished("a", 0, "failed", "It broke.")]
    assert answer(one_group(failed)) == "no method that learns task by task has a result."


def test_the_overview_counts_and_misses(make: Make, unfinished: Make) -> None:
    cells = [make("a"), make("b", 1, "other"), unfinished("b", 0, "oom", "Too big.")]
    assert overview(cells, group(cells)) == [
        "Methods (2): a, b",
        "Benchmarks (2): digits, other",
        "Seeds (2): 0, 1",
        "Cells: 3, of which 2 done, 1 oom",
        "Not run on other, class-incremental: a",
    ]
