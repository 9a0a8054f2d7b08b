"""DualLoRA as it is deployed gives what the plain formulas in float64 give, in fewer operations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods.duallora import DualLora
from methods.duallora_deployed import DeployedAttention
from methods.duallora_modules import DualPlug
from tests.methods.conftest import learner, stream
from tests.methods.test_duallora import BLOCKS, ByHand, learnt_with, lively_vit, restored, stirred

#: What the state was learnt with; the other options can be exchanged afterwards.
LEARNT: dict[str, Any] = {"gate": "posterior"}


@pytest.fixture
def images(labelled) -> Tensor:
    return labelled[0]


def deployed(method: DualLora, model: VisionTransformer) -> VisionTransformer:
    copied = deepcopy(model)
    method.merge(copied)
    return copied


def scored(model: VisionTransformer) -> list[bool]:
    """By block, whether it looks at the image's features."""
    return [isinstance(block.attn, DeployedAttention) for block in model.blocks]


FOLDABLE: list[tuple[dict[str, Any], list[bool]]] = [
    ({}, [True, True]),
    ({"score_depth": 0.5}, [True, True]),
    ({"gate_depth": 0.5}, [True, True]),
    ({"gate_depth": 0.5, "score_depth": 0.5}, [False, True]),
    ({"gate_depth": 0.5, "calibration": "none"}, [False, True]),
    ({"score": "share", "tau": 0.8}, [True, True]),
    ({"feature": "cls_in"}, [True, True]),
    ({"feature": "all_tokens"}, [True, True]),
    ({"calibration": "none"}, [True, True]),
    ({"calibration": "hard", "certain": 0.1}, [True, True]),
    ({"beta": 0.7}, [True, True]),
    ({"gate": "none", "score_depth": 0.5}, [False, True]),
    ({"gate": "none", "calibration": "none"}, [False, False]),
    ({"adapters": "orthogonal", "score_depth": 0.5}, [False, True]),
]


@pytest.mark.parametrize(("options", "looks"), FOLDABLE, ids=str)
@pytest.mark.parametrize("experiences", [2, 3])
def test_the_deployed_pass_by_hand(options, looks, experiences, images):
    shaping = {name: options[name] for name in ("gate", "gate_depth", "adapters") if name in options}
    state = learnt_with(**{**LEARNT, **shaping}).states[experiences - 1]
    method, model = restored(state, **{**LEARNT, **options})
    stirred(model)
    folded = deployed(method, model)
    assert scored(folded) == looks
    seen = model.head.columns
    with torch.no_grad():
        logits, unfolded = folded(images), model(images)
    expected = ByHand(model, method.hyper).logits(images)
    torch.testing.assert_close(logits[:, seen].double(), expected[:, seen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, unfolded, atol=1e-5, rtol=5e-6)


@pytest.mark.parametrize("calibration", ["none", "softmax", "hard"])
def test_after_one_experience_the_deployed_model_is_the_plain_vit(calibration, images):
    method, model = restored(learnt_with(**LEARNT).states[0], **LEARNT, calibration=calibration)
    folded = deepcopy(model)
    assert method.merge(folded)
    assert all(block.attn.plug is None for block in folded.blocks)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"gate": "relevance"}, {"calibration": "stick"}, {"targets": "kv"}],
    ids=str,
)
def test_a_model_with_other_formulas_keeps_its_adapters(options, images):
    trained = {name: options[name] for name in ("targets",) if name in options}
    method, model = restored(learnt_with(**LEARNT, **trained).states[-1], **{**LEARNT, **options})
    folded = deepcopy(model)
    assert not method.merge(folded)
    assert all(isinstance(block.attn.plug, DualPlug) for block in folded.blocks)
    with torch.no_grad():
        assert torch.equal(folded(images), model(images))


def test_an_attention_that_normalises_keys_keeps_its_adapters(images):
    model, method = lively_vit(qk_norm=True), DualLora(rank=3, lr=2e-2)
    strategy = learner(model, method, epochs=1)
    for experience in stream().train_stream[:2]:
        strategy.train(experience)
    folded = deepcopy(model.eval())
    assert not method.merge(folded)
    with torch.no_grad():
        assert torch.equal(folded(images), model(images))


def test_features_that_are_zero_score_all_experiences_alike(images):
    """As the unfolded model's: a class token that normalisation makes zero has no energy."""
    method, model = restored(learnt_with(**LEARNT).states[-1], **LEARNT)
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight.zero_()
            block.norm1.bias.zero_()
        folded = deployed(method, model)
        torch.testing.assert_close(folded(images), model(images), atol=1e-4, rtol=1e-5)
        assert folded(images).isfinite().all()


def test_in_mixed_precision_the_deployed_model_predicts_as_the_trained_one(images):
    method, model = restored(learnt_with(**LEARNT).states[-1], **LEARNT)
    folded = deployed(method, model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, expected = folded(images), model(images)
    assert logits.dtype == expected.dtype
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits, expected, atol=0.03 * scale, rtol=0)


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func.overloadpacket is not torch.ops.aten._unsafe_view
        return func(*args, **(kwargs or {}))


def operations(model: VisionTransformer, images: Tensor) -> int:
    with torch.no_grad(), Operations() as counted:
        model(images)
    return counted.count


def test_a_scored_block_adds_few_operations(images):
    """Fourteen of its own, where a block of the trained model adds more than twice as many."""
    method, model = restored(learnt_with(**LEARNT).states[-1], **LEARNT)
    plain = operations(lively_vit(), images[:1])
    outside = 7  # the posterior's term of the logits
    assert operations(deployed(method, model), images[:1]) <= plain + 14 * BLOCKS + outside
    assert operations(model, images[:1]) > plain + 26 * BLOCKS
