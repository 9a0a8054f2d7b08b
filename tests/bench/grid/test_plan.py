"""From a command to cells: variants are rows; a published recipe is a default under its protocol."""

from __future__ import annotations

import pytest

from bench.cell.backbone import MICRO_NAME
from bench.grid.plan import plan
from bench.spec import Cell, settings_from


def cells(*methods: str, **values) -> dict[str, Cell]:
    """The cells of one seed on digits, by the label of their row."""
    given = {"methods": methods, "benchmarks": ["digits"], "seeds": [0], "backbone": MICRO_NAME, **values}
    return {p.cell.method.label: p.cell for p in plan(settings_from(given), skip_missing=False)}


def test_an_ablation_is_one_grid_with_a_row_for_each_variant():
    rows = cells("duallora", "duallora:gate=none", "duallora:calibration=none+rank=8")
    assert list(rows) == ["duallora", "duallora:gate=none", "duallora:calibration=none+rank=8"]
    options = [cell.method.options for cell in rows.values()]
    assert [o["gate"] == "none" for o in options] == [False, True, False]
    assert [o["rank"] == 8 for o in options] == [False, False, True]
    assert len({cell.id for cell in rows.values()}) == 3


def test_under_the_papers_protocol_a_row_has_its_published_settings_and_its_plain_name():
    common, paper = cells("inflora")["inflora"], cells("inflora", protocol="paper")["inflora"]
    assert paper.method.options["lr"] == 5e-4 != common.method.options["lr"]
    assert (paper.protocol.batch_size, paper.protocol.schedule) == (128, "coda")
    assert paper.id != common.id


@pytest.mark.parametrize(("lr", "label"), [(0.01, "inflora:lr=0.01"), (5e-4, "inflora")])
def test_an_option_of_the_command_wins_over_the_recipe(lr, label):
    rows = cells(f"inflora:lr={lr}", protocol="paper")
    assert rows[label].method.options["lr"] == lr


def test_imagenet_r_has_a_threshold_of_its_own_in_infloras_recipe():
    given = {
        "methods": ["inflora"],
        "benchmarks": ["imagenet-r", "cifar100"],
        "protocol": "paper",
        "seeds": [0],
    }
    found = [p.cell.method.options["lamb"] for p in plan(settings_from(given), skip_missing=True)]
    assert found == [0.98, 0.95]


PROMPTS = ("l2p", "dualprompt", "coda-prompt")


def test_options_that_are_lists_make_no_other_row_unless_they_are_set():
    assert list(cells(*PROMPTS)) == list(PROMPTS)
    (label,) = cells("coda-prompt:blocks=[0]")
    assert label == "coda-prompt:blocks=[0]"


def test_the_prompt_methods_run_by_their_papers_recipes():
    rows = cells(*PROMPTS, protocol="paper", backbone=None, weights="random", image_size=32)
    found = {
        name: (c.protocol.backbone.partition(".")[2], c.protocol.batch_size, c.protocol.schedule)
        for name, c in rows.items()
    }
    assert found == {
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
