"""Which blocks a method leaves alone, and what their activations take; no times are compared."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from bench.cell.backbone import MICRO_ARCHITECTURE, MICRO_NAME
from scripts.perf import cost, front

TINY = ["--backbone", MICRO_NAME, "--image-size", "8", "--train-batch", "4", "--rounds", "1"]
WIDTH, TOKENS = MICRO_ARCHITECTURE["embed_dim"], 5  # 8 x 8 pixels in patches of 4, and the class token


@pytest.fixture(scope="module")
def setting() -> cost.Setting:
    return front.setting_of(TINY)[1]


@pytest.mark.parametrize(
    ("label", "first"),
    [
        ("finetune", 0),
        ("inflora", 0),
        ("duallora:score_depth=0.5+gate_depth=0.5", 0),
        ("l2p", 0),
        ("dualprompt:general_blocks=[2]+expert_blocks=[3,4]", 2),
        ("coda-prompt:blocks=[4,5]", 4),
        ("linear-probe", MICRO_ARCHITECTURE["depth"]),
    ],
)
def test_the_first_adapted_block_is_the_first_with_a_gradient(
    label: str, first: int, setting: cost.Setting
) -> None:
    strategy = front.at_first_step(label, setting)
    assert front.first_adapted(strategy, cost.inputs(4, setting)) == first


def test_blocks_are_no_longer_watched_afterwards(setting: cost.Setting) -> None:
    strategy = front.at_first_step("finetune", setting)
    before = [len(block._forward_hooks) for block in strategy.model.blocks]
    front.first_adapted(strategy, cost.inputs(4, setting))
    assert [len(block._forward_hooks) for block in strategy.model.blocks] == before


@pytest.mark.parametrize("first", [0, 2, 6])
def test_activations_in_front_of_a_block_are_those_it_reads(first: int, setting: cost.Setting) -> None:
    """The blocks that follow make timm's own features of them."""
    vit: VisionTransformer = cost.plain(setting).eval()
    x = cost.inputs(3, setting)
    with torch.no_grad():
        tokens = front.activations(vit, x, first)
        assert torch.equal(vit.norm(vit.blocks[first:](tokens)), vit.forward_features(x))


def test_activations_are_counted_in_bytes(setting: cost.Setting) -> None:
    assert front.bytes_per_image(3, setting) == TOKENS * WIDTH * 4


def test_every_method_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    front.main([*TINY, "--methods", "finetune,coda-prompt:blocks=[4,5]"])
    first, table = capsys.readouterr().out.strip().split("\n\n")
    assert first.startswith(f"{MICRO_NAME}, random weights, 8 px, fp32, batches of 4")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["finetune", "0"], ["coda-prompt:blocks=[4,5]", "4"]]
    assert [row[-2:] for row in rows] == [["2", "0.1"]] * 2  # 2.5 KiB, 0.12 GiB for 50,000
