"""The contract on every pooling that timm's ViTs have: the backbone says what the classifier reads."""

from __future__ import annotations

import pytest
import torch

from methods.errors import UsageError
from methods.experts import ExpertHead
from methods.registry import METHODS
from tests.conftest import tiny_vit
from tests.methods.conftest import FULL, ORDER, Run, make

#: Beside "token", on which all other tests run.
POOLINGS = ["avg", "avgmax", "max", "map", "prr"]
SEEN = sorted(ORDER[:4])


def pooled(pool, **changes):
    return lambda: tiny_vit(depth=5, global_pool=pool, **changes)


@pytest.fixture(scope="module")
def runs():
    """Two experiences with each method and each pooling, trained when a test asks first."""
    made: dict[tuple[str, str], Run] = {}

    def run(name, pool):
        if (name, pool) not in made:
            with torch.enable_grad():
                made[name, pool] = Run(name, epochs=2, experiences=2, vit=pooled(pool))
        return made[name, pool]

    return run


@pytest.mark.parametrize("pool", POOLINGS)
def test_a_method_that_reads_the_class_token_refuses_every_other_pooling(pool):
    with pytest.raises(UsageError, match=f"s-prompts reads the class token, and .* pools by '{pool}'"):
        make("s-prompts").attach(pooled(pool)())


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("name", [*(name for name in METHODS if name != "s-prompts"), FULL])
class TestContract:
    def test_it_learns_and_leaves_the_backbone_alone(self, name, pool, runs):
        run = runs(name, pool)
        frozen = [key for key in run.before if not key.startswith("head.") and not run.method.owns(key)]
        assert [key for key in frozen if not torch.equal(run.before[key], run.after[-1][key])] == []
        trained = [losses for losses in run.spy.losses if losses]
        assert all(losses[-1] < losses[0] for losses in trained)
        assert bool(trained) == (name not in ("ncm", "joint"))

    def test_only_classes_seen_are_predicted_whatever_the_batch(self, name, pool, runs, images):
        model = runs(name, pool).model
        with torch.no_grad():
            together = model(images)
            alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
        finite = torch.isfinite(together)
        assert set(finite.any(0).nonzero().flatten().tolist()) <= set(SEEN)
        if not isinstance(model.head, ExpertHead):  # where one expert answers, others' classes are ruled out
            assert finite.all(0).nonzero().flatten().tolist() == SEEN

    def test_a_state_and_a_merge_give_the_same_logits(self, name, pool, runs, images):
        run, model = runs(name, pool), pooled(pool)()
        method = make(name)
        method.restore(model, run.method.state())
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(images), run.model(images))
            method.merge(model)
            torch.testing.assert_close(model(images), run.model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_vit_without_pooling_is_refused(name):
    with pytest.raises(UsageError, match="no pooling"):
        make(name).attach(pooled("")())


@pytest.mark.parametrize("pool", ["avg", "map"])
@pytest.mark.parametrize("name", list(METHODS))
def test_a_vit_without_class_token_works_or_is_refused_by_name(name, pool):
    model, method = pooled(pool, class_token=False)(), make(name)
    if name in ("duallora", "s-prompts"):
        with pytest.raises(UsageError, match=f"{name} reads the class token.* use a backbone"):
            method.attach(model)
    else:
        method.attach(model)
        method.start_experience(model, (0, 1))
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
