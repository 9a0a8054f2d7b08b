"""The ViT with seams: timm's own when nothing is plugged in, plain attention arithmetic when something is."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import Attention
from torch import nn

from methods.errors import UsageError
from methods.lora import LoraPlug, LowRank
from methods.vit import InputTokens, Plug, Prefix, SeamAttention, check_blocks, embed, open_seams
from tests.methods import by_hand

TIMM_VITS = {
    "plain": {"model_name": "vit_tiny_patch16_224", "img_size": 32, "depth": 2},
    "register tokens, layer scale": {
        "model_name": "vit_small_patch14_reg4_dinov2",
        "img_size": 28,
        "depth": 2,
    },
    "dropout everywhere": {
        "model_name": "vit_base_patch32_224",
        "img_size": 32,
        "depth": 2,
        "attn_drop_rate": 0.2,
        "proj_drop_rate": 0.2,
        "drop_path_rate": 0.2,
    },
}


def test_with_nothing_plugged_in_the_call_goes_to_timms_own_code(vit, monkeypatch):
    attention = open_seams(vit())[0]
    monkeypatch.setattr(Attention, "forward", lambda self, x: "timm's")
    assert attention(torch.randn(1, 17, 32)) == "timm's"
    attention.plug = Nothing()
    assert attention(torch.randn(1, 17, 32)).shape == (1, 17, 32)


class Nothing(Plug):
    """A plug that leaves everything as it is: sends the call through our arithmetic."""


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("settings", TIMM_VITS.values(), ids=TIMM_VITS)
def test_with_nothing_plugged_in_logits_are_timms_bit_for_bit(settings, training):
    torch.manual_seed(0)
    model = timm.create_model(**settings, num_classes=7).train(training)
    x = torch.randn(3, 3, settings["img_size"], settings["img_size"])

    def logits() -> torch.Tensor:
        torch.manual_seed(1)
        return model(x)

    before, names = logits(), list(model.state_dict())
    opened = open_seams(model)
    assert len(opened) == settings["depth"]
    assert all(type(block.attn) is SeamAttention for block in model.blocks)
    assert torch.equal(logits(), before)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"qkv_bias": False}, {"num_heads": 2}])
def test_a_plug_that_changes_nothing_changes_no_logits(vit, settings):
    model, x = vit(**settings), torch.randn(3, 3, 16, 16)
    before = model(x)
    for attention in open_seams(model):
        attention.plug = Nothing()
    torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}], ids=["plain", "qk_norm"])
def test_low_rank_additions_equal_a_changed_weight(vit, settings):
    model, x = vit(**settings).double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    merged = vit(**settings).double()
    for attention, target in zip(open_seams(model), merged.blocks, strict=True):
        attention.plug = LoraPlug(32, 3, "qv").double()
        for row, name in ((0, "q"), (64, "v")):
            low_rank = attention.plug.maps[name]
            nn.init.normal_(low_rank.up)
            target.attn.qkv.weight.data[row : row + 32] += low_rank.up @ low_rank.down
    torch.testing.assert_close(model(x), merged(x), atol=1e-10, rtol=1e-10)


def test_low_rank_maps_start_at_zero_and_have_rank_times_two_widths_parameters():
    low_rank = LowRank(32, 4)
    assert torch.equal(low_rank(torch.randn(5, 32)), torch.zeros(5, 32))
    assert sum(p.numel() for p in low_rank.parameters()) == 2 * 32 * 4


def prefix_of(k: torch.Tensor, v: torch.Tensor) -> Prefix:
    prefix = Prefix()
    prefix.prompt = k, v
    return prefix


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize(("width", "heads"), [(32, 1), (32, 4), (48, 3)])
@pytest.mark.parametrize("shared", [False, True], ids=["of each image", "of all images"])
def test_prefixes_are_attended_to_and_leave_the_token_count(length, width, heads, shared):
    torch.manual_seed(0)
    attention = open_seams_of(Attention(width, heads, qkv_bias=True))
    k, v = torch.randn(2, 2, length, width)
    if shared:
        attention.plug = prefix_of(k[:1], v[:1])
        k, v = k[:1].expand_as(k), v[:1].expand_as(v)
    else:
        attention.plug = prefix_of(k, v)
    x = torch.randn(2, 9, width)
    assert attention(x).shape == x.shape
    expected = by_hand.attention(attention, x, (k, v))
    torch.testing.assert_close(attention(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_prefix_bypasses_the_projections_of_keys_and_values():
    """With W_k = W_v = 0 and no bias, the block's own keys all score 0 and its own values are 0."""
    attention = open_seams_of(Attention(4, 1, qkv_bias=False))
    nn.init.zeros_(attention.qkv.weight)
    nn.init.eye_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    value = torch.tensor([[[1.0, -2.0, 3.0, 0.5]]])
    attention.plug = prefix_of(torch.zeros(1, 1, 4), value)
    torch.testing.assert_close(attention(torch.randn(1, 3, 4)), (value / 4).expand(1, 3, 4))


def test_an_empty_prefix_goes_to_timms_own_code(vit, monkeypatch):
    attention = open_seams(vit())[0]
    attention.plug = Prefix()
    monkeypatch.setattr(Attention, "forward", lambda self, x: "timm's")
    assert attention(torch.randn(1, 17, 32)) == "timm's"


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_input_tokens_join_every_block_and_the_classifier_reads_their_mean(vit, pool):
    model, x = vit(global_pool=pool, class_token=pool == "token"), torch.randn(3, 3, 16, 16)
    before = model(x)
    tokens = InputTokens(model)
    assert torch.equal(model(x), before)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, out: seen.append(out))
    tokens.prompt = torch.randn(3, 5, 32)
    logits = model(x)
    assert [out.shape[1] for out in seen] == [
        before_tokens + 5 for before_tokens in [17 if pool == "token" else 16] * 2
    ]
    read = model.fc_norm(model.norm(seen[-1])[:, -5:].mean(1))
    torch.testing.assert_close(logits, model.head(read))
    tokens.prompt = None
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("blocks", "legal"), [((0, 1), True), ((), True), ((2,), False), ((-1,), False), ((1, 1), False)]
)
def test_blocks_that_are_not_there_are_refused(vit, blocks, legal):
    if legal:
        check_blocks("m.blocks", blocks, vit())
        return
    with pytest.raises(UsageError, match=r"m\.blocks is .*legal: distinct numbers from 0 to 1"):
        check_blocks("m.blocks", blocks, vit())


def open_seams_of(attention: Attention) -> SeamAttention:
    attention.__class__ = SeamAttention
    attention.plug = None
    return attention


class Recorder(Plug):
    """Keeps what it is shown."""

    def attend(self, x, q, k, v):
        self.seen = x, torch.softmax(q[:, :, :1] @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
        return q, k, v


def test_a_plug_sees_the_normalised_input_and_can_read_the_class_tokens_attention(vit):
    model = vit()
    recorder = open_seams(model)[0].plug = Recorder()
    model(torch.randn(3, 3, 16, 16))
    x, attention = recorder.seen
    torch.testing.assert_close(x.mean(-1), torch.zeros(3, 17), atol=1e-5, rtol=0)
    assert attention.shape == (3, 4, 1, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 4, 1))


def test_opening_twice_keeps_what_is_plugged_in(vit):
    model = vit()
    plug = open_seams(model)[0].plug = Nothing()
    assert open_seams(model)[0].plug is plug


def test_what_cannot_be_opened_is_refused_with_its_name(vit):
    with pytest.raises(UsageError, match="timm VisionTransformer, got Linear"):
        open_seams(nn.Linear(2, 2))
    model = vit()
    model.blocks[0].attn.gate = nn.Linear(32, 32)
    with pytest.raises(UsageError, match="gate"):
        open_seams(model)


def test_embed_is_what_the_classifier_sees(vit):
    model, x = vit(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.head(embed(model, x)), model(x))
