"""Backbones: the packaged micro ViT, weights located or refused, contamination reported."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from bench.cell.backbone import (
    MICRO_ARCHITECTURE,
    MICRO_NAME,
    MICRO_WEIGHTS,
    build,
    micro_card,
    resolve,
    sha256_of,
)
from methods.errors import MissingError, UsageError

TINY_TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_the_packaged_weights_are_those_of_their_card():
    card = micro_card()
    assert sha256_of(MICRO_WEIGHTS) == card["sha256"]
    assert MICRO_WEIGHTS.stat().st_size <= 4_000_000
    assert 1_000_000 <= card["parameters"] <= 1_500_000
    assert card["name"] == MICRO_NAME


def test_the_packaged_weights_are_built_exactly_into_timms_class():
    backbone = resolve(MICRO_NAME, None, [])
    model = build(backbone, 32)
    assert type(model) is VisionTransformer
    expected = {k: v.float() for k, v in load_file(str(MICRO_WEIGHTS)).items() if not k.startswith("head.")}
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_another_image_size_resamples_the_position_embedding_only():
    backbone = resolve(MICRO_NAME, None, [])
    small, large = build(backbone, 32), build(backbone, 64)
    assert large.pos_embed.shape[1] == 16 * 16 + 1
    assert torch.equal(small.blocks[0].attn.qkv.weight, large.blocks[0].attn.qkv.weight)
    assert large(torch.randn(1, 3, 64, 64)).shape == (1, 128)


def test_a_cell_on_the_pre_training_set_is_contaminated_and_says_so():
    backbone = resolve(MICRO_NAME, None, [])
    assert any("contaminated" in warning for warning in backbone.warnings("cifar100"))
    assert backbone.warnings("digits") == ()
    random = resolve(MICRO_NAME, "random", [])
    assert any("random weights" in warning for warning in random.warnings("digits"))
    assert not any("contaminated" in warning for warning in random.warnings("cifar100"))


def test_weights_are_found_in_a_data_root_under_the_full_tag(tmp_path):
    path = tmp_path / "weights" / f"{TINY_TAG}.safetensors"
    path.parent.mkdir()
    save_file({"x": torch.zeros(1)}, str(path))
    backbone = resolve(TINY_TAG, None, [tmp_path])
    assert backbone.weights == path
    assert backbone.sha256 == sha256_of(path)
    assert backbone.mean == (0.5, 0.5, 0.5)


def test_missing_weights_say_where_they_were_searched_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    with pytest.raises(MissingError, match="--weights FILE") as error:
        resolve(TINY_TAG, None, [tmp_path])
    assert str(tmp_path / "weights" / f"{TINY_TAG}.safetensors") in str(error.value)


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("vit_tiny_patch16_224", "ambiguous"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in2k", "did you mean"),
        ("resnet18.a1_in1k", "ResNet"),
    ],
)
def test_a_tag_that_does_not_exist_is_refused(tag, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        build(resolve(tag, "random", [tmp_path]), 224)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    wide = VisionTransformer(**{**MICRO_ARCHITECTURE, "mlp_ratio": 2}, num_classes=0)
    path = tmp_path / "wide.safetensors"
    save_file({k: v.clone() for k, v in wide.state_dict().items()}, str(path))
    with pytest.raises(UsageError, match=r"another architecture .* blocks.0.mlp.fc1"):
        build(resolve(MICRO_NAME, str(path), []), 32)
