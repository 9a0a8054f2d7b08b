"""The ViT with seams: timm's own when nothing is plugged in, plain attention arithmetic when something is."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import Attention
from torch import nn

from methods.errors import UsageError
from methods.lora import LoraPlug, LowRank
from methods.vit import Plug, SeamAttention, embed, open_seams

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


class Prefix(Plug):
    """Prefixes (B, H, L, Dh) in front of k and v."""

    def __init__(self, k: torch.Tensor, v: torch.Tensor) -> None:
        super().__init__()
        self.k, self.v = k, v

    def attend(self, x, q, k, v):
        return q, torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("heads", [1, 4])
def test_prefixes_are_attended_to_and_leave_the_token_count(length, heads):
    torch.manual_seed(0)
    width, tokens = 32, 9
    attention = open_seams_of(Attention(width, heads, qkv_bias=True))
    k = torch.randn(2, heads, length, width // heads)
    v = torch.randn(2, heads, length, width // heads)
    attention.plug = Prefix(k, v)
    x = torch.randn(2, tokens, width)
    assert attention(x).shape == (2, tokens, width)
    torch.testing.assert_close(attention(x).double(), by_hand(attention, x, k, v), atol=1e-5, rtol=1e-5)


def open_seams_of(attention: Attention) -> SeamAttention:
    attention.__class__ = SeamAttention
    attention.plug = None
    return attention


def by_hand(
    attention: SeamAttention, x: torch.Tensor, prefix_k: torch.Tensor, prefix_v: torch.Tensor
) -> torch.Tensor:
    """Softmax attention with prefixes, head by head, in float64."""
    weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
    width = x.shape[-1]
    dim = width // attention.num_heads
    samples = []
    for i, tokens in enumerate(x.double()):
        outputs = []
        for head in range(attention.num_heads):
            rows = [slice(part * width + head * dim, part * width + (head + 1) * dim) for part in range(3)]
            q, k, v = (tokens @ weight[row].T + bias[row] for row in rows)
            k = torch.cat([prefix_k[i, head].double(), k])
            v = torch.cat([prefix_v[i, head].double(), v])
            outputs.append(torch.softmax(q @ k.T / dim**0.5, dim=-1) @ v)
        joined = torch.cat(outputs, dim=-1)
        samples.append(joined @ attention.proj.weight.double().T + attention.proj.bias.double())
    return torch.stack(samples)


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
