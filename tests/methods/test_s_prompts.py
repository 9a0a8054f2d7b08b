"""S-Prompts: tokens of the image's domain beside its own, and the class token's features."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from methods.errors import UsageError
from tests.conftest import deep_vit, tiny_vit
from tests.methods.conftest import Run, domains, make


def by_hand(vit, images, tokens):
    """The class token's features in float64 with the tokens (L, D) in the sequence, block by block."""
    vit, images, tokens = vit.double(), images.double(), tokens.double()
    x = vit.patch_embed(images)
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
    x = torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
    for block in vit.blocks:
        x = block(x)
    return vit.fc_norm(vit.norm(x)[:, 0])


def test_the_class_token_is_read_beside_the_experts_tokens(images):
    run = Run("s-prompts", epochs=3, make_stream=domains)
    for expert in range(3):
        run.model.router.given = torch.full((len(images),), expert)
        with torch.no_grad():
            logits = run.model(images)
            features = by_hand(deep_vit(), images, run.method.tokens.experts[expert])
            expected = run.model.head.heads[expert].double()(features)
        run.model.head.heads[expert].float()
        torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)


def test_tokens_start_as_the_weights_of_a_linear_layer():
    run = Run("s-prompts:length=40", epochs=1, experiences=0)
    run.method.before_training(run.strategy)
    run.method.start_experience(run.model, [0, 1])
    (tokens,) = run.method.tokens.experts
    assert tokens.shape == (40, 32)
    bound = 1 / math.sqrt(32)
    assert 0.9 * bound < tokens.abs().max() <= bound
    assert abs(tokens.std().item() - bound / math.sqrt(3)) < 0.1 * bound


def test_an_experience_draws_its_own_tokens():
    run = Run("s-prompts", epochs=1, make_stream=domains)
    first, second, _ = run.method.tokens.experts
    assert not torch.equal(first, second)


def test_a_backbone_whose_classifier_reads_no_class_token_is_refused():
    with pytest.raises(UsageError, match="pools by 'avg'"):
        make("s-prompts").attach(tiny_vit(global_pool="avg"))


def test_sizes_on_a_vit_b_16():
    """A domain of 50 classes: 7,680 numbers of tokens and 38,450 of the classifier."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
        method = make("s-prompts")
        method.attach(model)
        method.start_experience(model, tuple(range(50)))
    state = model.state_dict()
    assert sum(state[name].numel() for name in method.names_of_expert(0)) == 7_680
    assert sum(p.numel() for p in model.head.heads[0].parameters()) == 38_450
