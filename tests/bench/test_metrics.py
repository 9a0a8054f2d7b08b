from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.metrics import METRICS, accuracy_matrix, compute_all, incremental_accuracies, metrics_of

FORGETTING_FAMILY = {"forgetting", "backward_transfer", "forgetting_coda"}


def of_classes(correct: list[list[int | None]], counts: list[int]) -> dict[str, float | None]:
    return compute_all(correct, counts, metrics_of("class-incremental"))


def of_domains(correct: list[list[int | None]], counts: list[int]) -> dict[str, float | None]:
    return compute_all(correct, counts, metrics_of("domain-incremental"))


def approx(expected: dict[str, float | None]) -> dict[str, object]:
    return {name: None if value is None else pytest.approx(value) for name, value in expected.items()}


@st.composite
def results(draw: st.DrawFn) -> tuple[list[list[int | None]], list[int]]:
    tasks = draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(1, 50), min_size=tasks, max_size=tasks))
    correct = [
        [draw(st.integers(0, counts[j])) if j <= i else None for j in range(tasks)] for i in range(tasks)
    ]
    return correct, counts


def test_one_task_has_no_forgetting() -> None:
    assert of_classes([[3]], [4]) == {
        "accuracy": 0.75,
        "accuracy_weighted": 0.75,
        "average_incremental_accuracy": 0.75,
        "forgetting": None,
        "backward_transfer": None,
        "forgetting_coda": None,
        "learning_accuracy": 0.75,
    }


def test_two_tasks_by_hand() -> None:
    # a = [[0.9, -], [0.6, 0.5]]
    assert of_classes([[9, None], [6, 10]], [10, 20]) == approx(
        {
            "accuracy": 0.55,
            "accuracy_weighted": 16 / 30,
            "average_incremental_accuracy": (0.9 + 0.55) / 2,
            "forgetting": 0.3,
            "backward_transfer": -0.3,
            "forgetting_coda": 0.3,
            "learning_accuracy": 0.7,
        }
    )


def test_three_tasks_where_all_forms_of_forgetting_differ() -> None:
    # a = [[0.6, -, -], [0.8, 0.5, -], [0.7, 0.4, 0.9]]: task 1 is best after task 2
    correct = [[6, None, None], [8, 10, None], [7, 8, 36]]
    assert of_classes(correct, [10, 20, 40]) == approx(
        {
            "accuracy": 2.0 / 3,
            "accuracy_weighted": 51 / 70,
            "average_incremental_accuracy": (0.6 + 0.65 + 2.0 / 3) / 3,
            "forgetting": (0.1 + 0.1) / 2,
            "backward_transfer": (0.1 - 0.1) / 2,
            "forgetting_coda": (-0.2 + (0.1 + 0.1) / 2) / 2,
            "learning_accuracy": 2.0 / 3,
        }
    )


def test_gain_is_negative_forgetting() -> None:
    found = of_classes([[5, None], [8, 6]], [10, 10])
    assert found["forgetting"] == pytest.approx(-0.3)
    assert found["backward_transfer"] == pytest.approx(0.3)
    assert found["forgetting_coda"] == pytest.approx(-0.3)


def test_last_row_alone_defines_the_final_accuracies_only() -> None:
    found = of_classes([[None, None], [9, 10]], [10, 20])
    assert found.pop("accuracy") == pytest.approx(0.7)
    assert found.pop("accuracy_weighted") == pytest.approx(19 / 30)
    assert set(found.values()) == {None}


def test_a_last_row_with_a_hole_defines_no_final_accuracy() -> None:
    found = of_classes([[5, None], [None, 6]], [10, 10])
    assert found["accuracy"] is None
    assert found["accuracy_weighted"] is None


def test_a_hole_in_the_middle_leaves_undefined_only_what_needs_it() -> None:
    found = of_classes([[10, None, None], [None, 8, None], [6, 7, 9]], [10, 10, 10])
    assert found["learning_accuracy"] == pytest.approx(0.9)
    assert found["backward_transfer"] == pytest.approx((-0.4 - 0.1) / 2)
    assert [found[name] for name in ("forgetting", "forgetting_coda", "average_incremental_accuracy")] == [
        None
    ] * 3


def test_matrix_is_the_quotient() -> None:
    assert accuracy_matrix([[1, None], [2, 3]], [4, 6]) == [[0.25, None], [0.5, 0.5]]
    assert incremental_accuracies([[1, None], [2, 3]], [4, 6]) == [0.25, 0.5]


@pytest.mark.parametrize("counts", [[4, 0], []])
def test_a_task_without_test_images_is_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one test image"):
        accuracy_matrix([[1, None], [2, 0]], counts)


def test_names_are_unique_and_every_metric_is_described() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(m.title and m.formula and m.source for m in METRICS)


@given(results())
def test_never_nan_and_within_its_unit(result: tuple[list[list[int | None]], list[int]]) -> None:
    found = of_classes(*result)
    low = {"fraction": 0.0, "difference": -1.0}
    for metric in metrics_of("class-incremental"):
        value = found[metric.name]
        if len(result[1]) == 1 and metric.name in FORGETTING_FAMILY:
            assert value is None
        else:
            assert value is not None
            assert math.isfinite(value)
            assert low[metric.unit] - 1e-12 <= value <= 1 + 1e-12


@given(results())
def test_chaudhry_is_at_least_the_diagonal_form(result: tuple[list[list[int | None]], list[int]]) -> None:
    found = of_classes(*result)
    if found["forgetting"] is not None and found["backward_transfer"] is not None:
        assert found["forgetting"] >= -found["backward_transfer"] - 1e-12


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_avalanche() -> None:
    """Avalanche's Forgetting is the diagonal form, -BWT; Chaudhry's differs on the same predictions."""
    import torch
    from avalanche.evaluation.metrics import BWT, Accuracy, Forgetting

    generator = torch.Generator().manual_seed(0)
    tasks, counts = 4, [30, 50, 20, 40]
    correct: list[list[int | None]] = [[None] * tasks for _ in range(tasks)]
    avalanche = {(i, j): Accuracy() for i in range(tasks) for j in range(i + 1)}
    stream = [Accuracy() for _ in range(tasks)]
    bwt, drop = BWT(), Forgetting()
    for i in range(tasks):
        for j in range(i + 1):
            true = torch.randint(0, 3, (counts[j],), generator=generator)
            noise = torch.randint(0, 3, (counts[j],), generator=generator)
            predicted = torch.where(torch.rand(counts[j], generator=generator) < 0.6, true, noise)
            correct[i][j] = int((predicted == true).sum())
            avalanche[i, j].update(predicted, true)
            stream[i].update(predicted, true)
            for metric in (bwt, drop):
                metric.update(j, avalanche[i, j].result(), initial=i == j)

    def mean(values: dict[int, float]) -> float:
        past = [values[j] for j in range(tasks - 1)]
        return sum(past) / len(past)

    found, matrix = of_classes(correct, counts), accuracy_matrix(correct, counts)
    assert all(matrix[i][j] == pytest.approx(metric.result()) for (i, j), metric in avalanche.items())
    assert found["accuracy_weighted"] == pytest.approx(stream[-1].result())
    assert found["backward_transfer"] == pytest.approx(mean(bwt.result()))
    assert found["backward_transfer"] == pytest.approx(-mean(drop.result()))
    assert found["forgetting"] != pytest.approx(mean(drop.result()))


# ---- streams of domains ------------------------------------------------------------------------


def test_two_domains_of_unequal_size_by_hand() -> None:
    # a = [[0.8, 0.1], [0.6, 0.9]]: the mean over domains, the pooled accuracy and the curve's mean all differ
    assert of_domains([[8, 3], [6, 27]], [10, 30]) == approx(
        {
            "accuracy": 0.75,
            "accuracy_weighted": 33 / 40,
            "average_incremental_accuracy": (0.8 + 0.75) / 2,
            "forgetting": 0.2,
            "backward_transfer": -0.2,
            "forgetting_coda": 0.2,
            "learning_accuracy": 0.85,
            "unseen_accuracy": 0.1,
        }
    )


def test_the_accuracy_on_domains_to_come_gives_each_step_the_same_weight() -> None:
    # after the first domain (0.2 + 0.4) / 2, after the second 0.5
    correct = [[9, 2, 4], [9, 9, 5], [9, 9, 9]]
    assert of_domains(correct, [10, 10, 10])["unseen_accuracy"] == pytest.approx((0.3 + 0.5) / 2)


def test_with_one_test_set_for_all_domains_nothing_is_forgotten_and_none_is_zero() -> None:
    found = of_domains([[2], [3], [4]], [5])
    assert {name: value for name, value in found.items() if value is not None} == approx(
        {"accuracy": 0.8, "accuracy_weighted": 0.8, "average_incremental_accuracy": 0.6}
    )


def test_what_only_domains_have_is_no_metric_of_class_incremental_results() -> None:
    of_classes = {metric.name for metric in metrics_of("class-incremental")}
    assert {metric.name for metric in METRICS} - of_classes == {"unseen_accuracy"}
    assert metrics_of("domain-incremental") == METRICS
    assert METRICS[0].title_in("domain-incremental") == "final accuracy, mean over domains"
    assert METRICS[0].title_in("class-incremental") == "final accuracy"
