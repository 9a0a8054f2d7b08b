"""Backbones: the packaged micro ViT, weights located or refused, contamination reported."""

from __future__ import annotations

import math
import shlex

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from bench.cell.backbone import (
    MICRO_ARCHITECTURE,
    MICRO_NAME,
    MICRO_WEIGHTS,
    build,
    is_from_jax,
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


def test_gelu_by_tanh_is_that_of_jax_in_every_block():
    backbone = resolve(MICRO_NAME, None, [])
    exact, tanh = build(backbone, 32), build(backbone, 32, "tanh")
    x = torch.linspace(-4, 4, 101)
    by_hand = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    for block in tanh.blocks:
        torch.testing.assert_close(block.mlp.act(x), by_hand)
    assert all(torch.equal(block.mlp.act(x), torch.nn.functional.gelu(x)) for block in exact.blocks)
    assert all(torch.equal(a, b) for a, b in zip(exact.parameters(), tanh.parameters(), strict=True))
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(exact(images), tanh(images))


def test_a_backbone_without_a_gelu_cannot_have_it_by_tanh():
    tag = "vit_base_patch32_clip_quickgelu_224.openai"
    with pytest.raises(UsageError, match=r"has no GELU; legal for it: backbone"):
        build(resolve(tag, "random", []), 32, "tanh")


@pytest.mark.parametrize(
    ("tag", "from_jax"),
    [
        ("vit_base_patch16_224.orig_in21k", True),
        (TINY_TAG, True),
        ("vit_base_patch16_224.augreg_in21k", True),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", False),
        ("vit_base_patch16_224.dino", False),
        (MICRO_NAME, False),
    ],
)
def test_which_weights_were_trained_in_jax(tag, from_jax):
    assert is_from_jax(tag) == from_jax


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


def packaged(**changes):
    return {key: changes.get(key, tensor) for key, tensor in load_file(str(MICRO_WEIGHTS)).items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad, tmp_path):
    path = tmp_path / "broken.safetensors"
    weight = packaged()["norm.weight"].clone()
    weight[3] = bad
    save_file(packaged(**{"norm.weight": weight}), str(path))
    with pytest.raises(UsageError, match=r"not finite, in 1 of 78 tensors: norm.weight; get an intact file"):
        build(resolve(MICRO_NAME, str(path), []), 32)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_what_a_wrapper_puts_before_each_name_is_no_part_of_it(prefix, tmp_path):
    path = tmp_path / "wrapped.safetensors"
    save_file({f"{prefix}{key}": tensor for key, tensor in packaged().items()}, str(path))
    wrapped, own = build(resolve(MICRO_NAME, str(path), []), 32), build(resolve(MICRO_NAME, None, []), 32)
    assert all(torch.equal(wrapped.state_dict()[key], own.state_dict()[key]) for key in own.state_dict())


def nested(content):
    return {"model": content, "epoch": 3}


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "pickle"])
@pytest.mark.parametrize("wrap", [dict, nested], ids=["flat", "nested"])
def test_a_file_of_torch_save_is_answered_with_a_command_that_converts_it(wrap, legacy, tmp_path):
    path = tmp_path / "vit.pth"
    torch.save(wrap(packaged()), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UsageError, match=r"is a file of torch.save, .* convert it with: python -c") as error:
        build(resolve(MICRO_NAME, str(path), []), 32)
    command = shlex.split(str(error.value).partition("convert it with: ")[2])
    assert command[:2] == ["python", "-c"]
    exec(command[2], {})
    converted = build(resolve(MICRO_NAME, str(path.with_suffix(".safetensors")), []), 32)
    own = build(resolve(MICRO_NAME, None, []), 32)
    assert torch.equal(converted.state_dict()["norm.weight"], own.state_dict()["norm.weight"])


def test_another_archive_is_no_file_of_torch(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez(path, x=np.zeros(1))
    with pytest.raises(UsageError, match="is not a readable safetensors file"):
        build(resolve(MICRO_NAME, str(path), []), 32)
