"""Cells that read kept features: the same record whether the cache was cold, warm, shared or deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell import runner
from bench.cell.inputs import Inputs, Paths
from bench.cell.measurements import Measurements
from bench.cell.progress import ignore
from bench.cell.runner import CellRun, keep_features, train_and_evaluate
from bench.record import RECORD_NAME, read
from bench.spec import Cell
from methods.registry import METHODS
from tests.bench.cell.conftest import plan_cell

ASKING = [name for name in METHODS if METHODS[name].load().asks_for != "none"]
FROZEN = [name for name in ASKING if METHODS[name].load().frozen_backbone]


def cell_of(method: str, tmp_path: Path, augmentation: str = "flip", **changes: Any) -> tuple[Cell, Paths]:
    cell, inputs = plan_cell(method, tmp_path / "results", **changes)
    protocol = cell.protocol.model_copy(update={"augmentation": augmentation, "epochs": 2})
    paths = Paths(inputs.paths.roots, inputs.paths.weights, inputs.paths.results, tmp_path / "features")
    return cell.model_copy(update={"protocol": protocol}), paths


def trained(cell: Cell, paths: Paths) -> tuple[CellRun, Measurements]:
    return train_and_evaluate(cell, Inputs(paths), "2026-01-01T00:00:00+00:00", ignore, lambda *_: None)


def without(paths: Paths) -> Paths:
    return Paths(paths.roots, paths.weights, paths.results)


def observed(run: CellRun, measured: Measurements) -> list[Any]:
    """Everything of a cell but what it cost: predictions, counts, diagnostics, the whole state."""
    state = run.method.state()
    return [
        measured.correct,
        measured.diagnostics,
        {task: labels.tolist() for task, labels in run.predicted.items()},
        {name: state[name].tolist() for name in sorted(state)},
    ]


def count(measured: Measurements, field: str) -> int:
    return sum(getattr(cost, field) for cost in measured.costs)


@pytest.mark.parametrize("augmentation", ["none", "flip"])
@pytest.mark.parametrize("method", ASKING)
def test_cold_and_warm_give_the_same_cell_bit_for_bit(method: str, augmentation: str, tmp_path: Path) -> None:
    cell, paths = cell_of(method, tmp_path, augmentation)
    cold, warm = trained(cell, paths), trained(cell, paths)
    assert observed(*cold) == observed(*warm)
    assert cold[1].feature_images is not None
    assert cold[1].feature_images > 0
    assert warm[1].feature_images == 0


@pytest.mark.parametrize("method", ASKING)
def test_kept_features_change_a_cell_by_rounding_only(method: str, tmp_path: Path) -> None:
    """The loader's batches are other ones than the cache's, so the last digits differ."""
    cell, paths = cell_of(method, tmp_path)
    (run, measured), (alone, computed) = trained(cell, paths), trained(cell, without(paths))
    for name, tensor in alone.method.state().items():
        torch.testing.assert_close(run.method.state()[name], tensor, atol=2e-3, rtol=1e-3)
    assert computed.feature_images is None
    assert count(computed, "cached_images") == 0
    assert count(measured, "train_images") == count(computed, "train_images")


@pytest.mark.parametrize("method", ASKING)
def test_the_passes_are_counted_with_and_without_the_cache(method: str, tmp_path: Path) -> None:
    cell, paths = cell_of(method, tmp_path)
    (_, kept), (_, computed) = trained(cell, paths), trained(cell, without(paths))
    total = count(computed, "forward_images")
    assert count(kept, "forward_images") + count(kept, "cached_images") == total
    steps, images = count(computed, "train_images"), len(Inputs(paths).images(cell).train_y)
    own = {"ncm": (images, 0), "linear-probe": (steps, 0)}  # all others adapt the backbone
    own |= dict.fromkeys(("color", "s-prompts"), (steps + images, steps))
    expected = own.get(method, (2 * steps, steps))
    assert (total, count(kept, "forward_images")) == expected


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ASKING])
def test_other_methods_keep_nothing(method: str, tmp_path: Path) -> None:
    cell, paths = cell_of(method, tmp_path)
    assert keep_features(cell, Inputs(paths), ignore) is None
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("method", ASKING)
def test_random_crops_are_computed_and_the_evaluation_reads(method: str, tmp_path: Path) -> None:
    cell, paths = cell_of(method, tmp_path, "crop-flip")
    (_, kept), (_, computed) = trained(cell, paths), trained(cell, without(paths))
    read = METHODS[method].load().asks_for == "clean"
    assert (count(kept, "cached_images") > 0) == read
    assert count(kept, "forward_images") + count(kept, "cached_images") == count(computed, "forward_images")


@pytest.mark.parametrize("method", FROZEN)
def test_a_backbone_that_is_said_to_be_frozen_gives_the_same_features_after_training(
    method: str, tmp_path: Path
) -> None:
    cell, paths = cell_of(method, tmp_path)
    run, _ = trained(cell, paths)
    fresh = runner.frozen_backbone(cell, Inputs(paths)).state_dict()
    learnt = run.strategy.model.state_dict()
    assert all(torch.equal(learnt[name], tensor) for name, tensor in fresh.items())


def test_seeds_and_methods_share_the_features_of_the_same_images(tmp_path: Path) -> None:
    weights = {"weights": None}
    first = trained(*cell_of("l2p", tmp_path, seeds=(1,), **weights))[1]
    second = trained(*cell_of("coda-prompt", tmp_path, seeds=(2,), **weights))[1]
    third = trained(*cell_of("linear-probe", tmp_path, seeds=(1,), tasks=2, **weights))[1]
    assert first.feature_images
    assert (second.feature_images, third.feature_images) == (0, 0)


def test_random_weights_of_two_seeds_are_two_sets_of_features(tmp_path: Path) -> None:
    assert trained(*cell_of("ncm", tmp_path, seeds=(1,)))[1].feature_images
    assert trained(*cell_of("ncm", tmp_path, seeds=(2,)))[1].feature_images


@pytest.mark.parametrize(
    "change",
    [{"gelu": "tanh"}, {"normalisation": "unit"}, {"precision": "bf16"}, {"image_size": 64}],
    ids=str,
)
def test_another_input_or_backbone_is_another_set_of_features(change: Any, tmp_path: Path) -> None:
    cell, paths = cell_of("ncm", tmp_path, weights=None)
    before = keep_features(cell, Inputs(paths), ignore)
    other = cell.model_copy(update={"protocol": cell.protocol.model_copy(update=change)})
    after = keep_features(other, Inputs(paths), ignore)
    assert before is not None
    assert after is not None
    assert after.passes == before.passes > 0
    assert not torch.equal(after.tensors["test", False], before.tensors["test", False])


def test_the_option_keeps_no_features(tmp_path: Path, cli: Callable[..., Any]) -> None:
    arguments = ("run", "--methods", "ncm", "--scale", "smoke", "--seeds", "0", "--data-root", "here")
    kept: list[int | None] = []
    for options in ((), ("--no-feature-cache",)):
        assert cli(*arguments, "--rerun", "all", *options)[0] == 0
        (path,) = (tmp_path / "results").glob(f"*/{RECORD_NAME}")
        cost = read(path).cost
        assert cost is not None
        kept.append(cost.feature_images)
    assert kept[0]
    assert kept[1] is None
    assert list((tmp_path / "here" / "features").glob("*.safetensors"))


def test_a_file_that_was_damaged_between_two_cells_is_computed_again(tmp_path: Path) -> None:
    cell, paths = cell_of("linear-probe", tmp_path)
    cold = trained(cell, paths)
    damaged = sorted((tmp_path / "features").glob("*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    again = trained(cell, paths)
    assert observed(*again) == observed(*cold)
    assert again[1].feature_images
    assert again[1].feature_images < (cold[1].feature_images or 0)
