"""From a command to cells: variants are rows; a published recipe is a default under its protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from bench.benchmarks import BENCHMARKS
from bench.benchmarks.splits import class_order
from bench.cell.inputs import Inputs
from bench.grid.plan import protocol_of, resolve_device
from bench.spec import Cell, settings_from
from methods.errors import UsageError
from methods.registry import METHODS
from tests.bench.grid.conftest import cells

Rows = Callable[..., dict[str, Cell]]


@pytest.fixture
def rows_of(inputs: Inputs) -> Rows:
    """The cells of one seed, by the label of their row."""
    return lambda *methods, **values: {
        planned.cell.method.label: planned.cell for planned in cells(inputs, *methods, **values)
    }


def test_an_ablation_is_one_grid_with_a_row_for_each_variant(rows_of: Rows) -> None:
    rows = rows_of("duallora", "duallora:gate=none", "duallora:calibration=none+rank=8")
    assert list(rows) == ["duallora", "duallora:gate=none", "duallora:calibration=none+rank=8"]
    options = [cell.method.options for cell in rows.values()]
    assert [o["gate"] == "none" for o in options] == [False, True, False]
    assert [o["rank"] == 8 for o in options] == [False, False, True]
    assert len({cell.id for cell in rows.values()}) == 3


def test_under_the_papers_protocol_a_row_has_its_published_settings_and_its_plain_name(
    rows_of: Rows,
) -> None:
    common, paper = rows_of("inflora")["inflora"], rows_of("inflora", protocol="paper")["inflora"]
    assert paper.method.options["lr"] == 5e-4 != common.method.options["lr"]
    assert (paper.protocol.batch_size, paper.protocol.schedule) == (128, "coda")
    assert paper.id != common.id


@pytest.mark.parametrize(("lr", "label"), [(0.01, "inflora:lr=0.01"), (5e-4, "inflora")])
def test_an_option_of_the_command_wins_over_the_recipe(lr: float, label: str, rows_of: Rows) -> None:
    rows = rows_of(f"inflora:lr={lr}", protocol="paper")
    assert rows[label].method.options["lr"] == lr


def test_imagenet_r_has_another_threshold_in_infloras_recipe(inputs: Inputs, no_network: None) -> None:
    benchmarks = ["imagenet-r", "cifar100"]
    planned = cells(inputs, "inflora", benchmarks=benchmarks, protocol="paper", skip_missing=True)
    assert [item.cell.method.options["lamb"] for item in planned] == [0.98, 0.95]


PROMPTS = ("l2p", "dualprompt", "coda-prompt")


def test_options_that_are_lists_make_no_other_row_unless_they_are_set(rows_of: Rows) -> None:
    assert list(rows_of(*PROMPTS)) == list(PROMPTS)
    (label,) = rows_of("coda-prompt:blocks=[0]")
    assert label == "coda-prompt:blocks=[0]"


def test_the_prompt_methods_run_by_their_papers_recipes(rows_of: Rows, no_network: None) -> None:
    rows = rows_of(*PROMPTS, protocol="paper", backbone=None, skip_missing=True)
    recipes = {
        name: (c.protocol.backbone.partition(".")[2], c.protocol.batch_size, c.protocol.schedule)
        for name, c in rows.items()
    }
    assert recipes == {
        "l2p": ("orig_in21k", 128, "constant"),
        "dualprompt": ("orig_in21k", 192, "constant"),
        "coda-prompt": ("augreg_in21k_ft_in1k", 128, "coda"),
    }
    assert {c.protocol.normalisation for c in rows.values()} == {"unit"}
    assert {name: c.protocol.augmentation for name, c in rows.items()} == {
        "l2p": "small-crop-flip",
        "dualprompt": "small-crop-flip",
        "coda-prompt": "crop-flip",
    }
    assert rows["dualprompt"].method.options["lr"] == pytest.approx(0.0225)


@pytest.mark.parametrize("scale", ["smoke", "quick", "full"])
@pytest.mark.parametrize("benchmark", sorted(BENCHMARKS))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_scale_shortens_a_recipe_as_it_shortens_the_benchmark(
    method: str, benchmark: str, scale: str
) -> None:
    opened, method_class = BENCHMARKS[benchmark].load(), METHODS[method].load()
    values = {"methods": [method], "benchmarks": [benchmark], "protocol": "paper", "scale": scale}
    protocol = protocol_of(settings_from(values), opened(opened.Options()), method_class)
    scales = opened.scales
    published = method_class.paper(benchmark).get("epochs", scales["full"].epochs)
    assert protocol.epochs == math.ceil(Fraction(published) * scales[scale].epochs / scales["full"].epochs)
    assert protocol.epochs >= 1


#: What the official code does, where it differs from the common protocol; docs/protocols.md has the files.
TENSORFLOW = {"drop_last": True, "class_order": "identity", "geometry": "squash", "test_crop": 0.875}
OFFICIAL = {
    "l2p": TENSORFLOW,
    "dualprompt": TENSORFLOW,
    "coda-prompt": {"drop_last": True},
    "inflora": {"class_order": "identity"},
    "duallora": {"class_order": "identity"},
}
COMMON = {"drop_last": False, "class_order": "seeded", "geometry": "square", "test_crop": None}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_recipe_cuts_batches_orders_classes_and_resizes_images_as_the_official_code(method: str) -> None:
    opened = BENCHMARKS["cifar100"].load()
    benchmark = opened(opened.Options())
    torchvision = COMMON | {"geometry": "whole"}
    for protocol, expected in (("paper", torchvision | OFFICIAL.get(method, {})), ("common", COMMON)):
        settings = settings_from({"methods": [method], "benchmarks": ["cifar100"], "protocol": protocol})
        fields = protocol_of(settings, benchmark, METHODS[method].load())
        assert {name: getattr(fields, name) for name in COMMON} == expected


def test_the_own_order_is_kept_for_every_seed_and_seeds_still_differ(inputs: Inputs) -> None:
    planned = [item.cell for item in cells(inputs, "inflora", seeds=[0, 1, 2], protocol="paper")]
    assert {cell.class_order for cell in planned} == {tuple(range(10))}
    assert len({cell.id for cell in planned}) == 3
    seeded = [item.cell for item in cells(inputs, "inflora", seeds=[0, 1], class_order="seeded")]
    assert [cell.class_order == tuple(range(10)) for cell in seeded] == [True, False]


def test_the_commands_class_order_wins_over_the_recipe(inputs: Inputs) -> None:
    (item,) = cells(inputs, "inflora", seeds=[1], protocol="paper", class_order="seeded")
    assert item.cell.class_order == class_order(10, 1)
    (item,) = cells(inputs, "finetune", seeds=[1], class_order="identity")
    assert item.cell.class_order == tuple(range(10))


def test_a_listed_order_is_in_the_cell_so_that_no_worker_needs_the_file(
    inputs: Inputs, tmp_path: Path
) -> None:
    path = tmp_path / "order.txt"
    path.write_text("\n".join("9876543210"))
    (item,) = cells(inputs, "finetune", class_order=str(path))
    path.unlink()
    assert item.cell.class_order == tuple(range(9, -1, -1))
    assert inputs.split(item.cell).class_order == item.cell.class_order
    assert item.cell.id != cells(inputs, "finetune")[0].cell.id
    with pytest.raises(UsageError, match="needs the list: give --class-order FILE"):
        cells(inputs, "finetune", protocol_options={"class_order": "listed"})


def test_the_plan_says_where_a_task_is_smaller_than_a_batch(inputs: Inputs) -> None:
    small = {"protocol": "paper", "scale": "smoke"}
    (planned,) = cells(inputs, "coda-prompt", **small)
    assert planned.caution is not None
    assert planned.caution.startswith("5 of 5 tasks have fewer training images than a batch of 128")
    (enough,) = cells(inputs, "coda-prompt", **small, protocol_options={"batch_size": 8})
    assert enough.caution is None


def test_epochs_of_the_command_are_not_scaled(rows_of: Rows, no_network: None) -> None:
    quick = {"protocol": "paper", "scale": "quick", "protocol_options": {"epochs": 7}, "backbone": None}
    rows = rows_of("dualprompt", benchmarks=["imagenet-r"], skip_missing=True, **quick)
    assert rows["dualprompt"].protocol.epochs == 7


GELU = [
    ("paper", "vit_base_patch16_224.orig_in21k", {}, "tanh"),
    ("paper", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", {}, "tanh"),
    ("paper", "vit_base_patch16_224.augreg2_in21k_ft_in1k", {}, "backbone"),
    ("paper", "micro_vit_patch4_32.cifar100", {}, "backbone"),
    ("paper", "micro_vit_patch4_32.cifar100", {"gelu": "tanh"}, "tanh"),
    ("paper", "vit_base_patch16_224.orig_in21k", {"gelu": "backbone"}, "backbone"),
    ("common", "vit_base_patch16_224.orig_in21k", {}, "backbone"),
]


@pytest.mark.parametrize(("protocol", "tag", "options", "gelu"), GELU)
def test_gelu_is_jaxs_where_the_recipe_and_the_weights_are_from_jax(
    protocol: str, tag: str, options: dict[str, str], gelu: str, rows_of: Rows, no_network: None
) -> None:
    values = {"protocol": protocol, "protocol_options": options, "backbone": tag, "skip_missing": True}
    rows = rows_of("l2p", "dualprompt", "coda-prompt", **values)
    assert {name: cell.protocol.gelu for name, cell in rows.items()} == {
        "l2p": gelu,
        "dualprompt": gelu,
        "coda-prompt": options.get("gelu", "backbone"),  # timm's ViT is what its code runs
    }


def test_l2p_and_dualprompt_are_tested_task_by_task_where_their_code_votes(
    rows_of: Rows, no_network: None
) -> None:
    for benchmark, ways in (("digits", ("task", "task")), ("imagenet-r", ("task", "mixed"))):
        rows = rows_of("l2p", "dualprompt", benchmarks=[benchmark], protocol="paper", skip_missing=True)
        assert tuple(cell.protocol.test_batches for cell in rows.values()) == ways
    assert {cell.protocol.test_batches for cell in rows_of(*PROMPTS).values()} == {"mixed"}


def test_a_cluster_may_have_gpus_where_this_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cuda", remote=True) == "cuda"
    assert resolve_device("auto", remote=True) == "cpu"
    assert resolve_device("cpu", remote=False) == "cpu"
    with pytest.raises(UsageError, match="sees no CUDA device"):
        resolve_device("cuda", remote=False)


def test_a_gpu_of_this_machine_is_used_unless_the_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto", remote=False) == "cuda"
    assert resolve_device("cuda", remote=False) == "cuda"
    assert resolve_device("cpu", remote=False) == "cpu"
