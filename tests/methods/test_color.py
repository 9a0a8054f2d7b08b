"""CoLoR: each image is served by one expert on the pre-trained weights."""

from __future__ import annotations

import pytest
import timm
import torch

from methods.errors import UsageError
from methods.lora import merge
from methods.vit import embed
from tests.conftest import deep_vit, tiny_vit
from tests.methods.conftest import Run, make


@pytest.mark.parametrize("targets", ["kv", "q", "qkv"])
def test_an_expert_is_the_pretrained_vit_with_its_own_maps_in_the_weights(targets, images):
    """Not on top of earlier experts, and with no other expert's maps."""
    run = Run(f"color:targets={targets}", epochs=3)
    for expert in range(3):
        run.model.router.given = torch.full((len(images),), expert)
        with torch.no_grad():
            logits = run.model(images)
        plain = deep_vit()
        for attention, plug in zip((b.attn for b in plain.blocks), run.method.plugs, strict=True):
            for target, pair in plug.experts[expert].items():
                merge(attention.qkv, target, pair.up, pair.down)
        head = run.model.head.heads[expert]
        with torch.no_grad():
            expected = head(embed(plain, images))
        torch.testing.assert_close(logits[:, head.classes], expected, atol=1e-5, rtol=1e-5)


def test_an_expert_starts_at_the_frozen_backbone(images):
    run = Run("color", epochs=1, experiences=1)
    run.method.start_experience(run.model, [0, 5])
    assert all((pair.up == 0).all() for plug in run.method.plugs for pair in plug.experts[1].values())


def test_one_pass_serves_several_experts_as_it_serves_one(trained, images):
    model = trained("color").model
    mixed = torch.arange(len(images)) % 3
    model.router.given = mixed
    with torch.no_grad():
        together = model(images)
        for expert in range(3):
            model.router.given = torch.full((len(images),), expert)
            alone = model(images)
            torch.testing.assert_close(
                together[mixed == expert], alone[mixed == expert], atol=1e-5, rtol=1e-5
            )


def test_the_query_may_be_of_the_first_expert(images):
    run = Run("color:query=first", epochs=4, experiences=1)
    expected = run.model.router.query(run.model, images)
    with torch.no_grad():
        frozen = embed(deep_vit(), images)
    assert not torch.allclose(expected, frozen)
    run.learn(1)
    assert torch.equal(run.model.router.query(run.model, images), expected)
    run.learn(2)
    with torch.no_grad():
        run.model(images)
    assert run.model.router.chosen.shape == (len(images),)


def test_it_stays_apart_so_that_nothing_is_merged(trained):
    run = trained("color")
    assert run.method.merge(run.model) is False


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(UsageError, match=r"color\.rank is 33"):
        make("color:rank=33").attach(tiny_vit())


def test_sizes_on_a_vit_b_16():
    """Two projections: 36,864 numbers of each rank and experience; 5 centroids of 768."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
        method = make("color")
        method.attach(model)
        for classes in (range(10), range(10, 20)):
            method.start_experience(model, tuple(classes))
    state = model.state_dict()
    for expert in range(2):
        names = method.names_of_expert(expert)
        assert sum(state[name].numel() for name in names) == 36_864 * 10
        assert sum(p.numel() for p in model.head.heads[expert].parameters()) == 769 * 10
    assert state["router.experiences.0.centroids"].shape[1] == 768
