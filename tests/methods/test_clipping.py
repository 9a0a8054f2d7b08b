"""Clipping in L2P and DualPrompt: whose gradients the norm is taken over, computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from bench.cell.strategy import DivergedError
from bench.cell.stream import experiences as experiences_of
from methods.registry import METHODS
from tests.bench.cell.test_strategy import make as harness
from tests.bench.conftest import arrays
from tests.conftest import deep_vit
from tests.methods.conftest import Run, learner

NAMES = ("l2p", "dualprompt")
CLIP = 0.05
RATE = 0.5

every = pytest.mark.parametrize("name", NAMES)

#: Of the parameters, by name.
Tensors = Mapping[str, Tensor]


class LastStep(SupervisedPlugin):
    """Keeps the model before a step, its batch, what the optimiser gets and what it makes of it.

    Not of the first step: heads start at zero, and no gradient passes through them.

    Attributes:
        before: a copy of the model.
        batch: images and labels.
        gradients, after: of the parameters that the optimiser holds.
        others: names of further parameters that have a gradient.
    """

    def before_training_iteration(self, strategy, *args, **kwargs):
        self.before = copy.deepcopy(strategy.model)
        self.batch = strategy.mb_x.clone(), strategy.mb_y.clone()

    def before_update(self, strategy, *args, **kwargs):
        held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        named = [(name, p) for name, p in strategy.model.named_parameters() if p.grad is not None]
        self.gradients = {name: p.grad.clone() for name, p in named if id(p) in held}
        self.others = [name for name, p in named if id(p) not in held]

    def after_update(self, strategy, *args, **kwargs):
        parameters = dict(strategy.model.named_parameters())
        self.after = {name: parameters[name].detach().clone() for name in self.gradients}


def last_step(name: str, experiences: int = 1, **options: Any) -> LastStep:
    """The last step of the last of so many experiences, by plain gradient descent."""
    run, step = Run(name, epochs=1, experiences=experiences - 1, clip=CLIP, **options), LastStep()
    run.strategy = learner(run.model, run.method, [step], epochs=1)
    run.strategy.optimizer = torch.optim.SGD(run.model.parameters(), lr=RATE)
    run.learn(experiences - 1)
    return step


def gradients_of_everything(step: LastStep, precision: str = "fp32") -> Tensors:
    """Of the loss with respect to all parameters of the model before the step, by autograd."""
    model, (x, y) = step.before, step.batch
    model.train().requires_grad_(True)
    classes = model.head.tasks[-1].classes.tolist()
    # Without a cache: casts of weights that were made for the query have no gradient.
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        logits = model(x).float()[:, classes]
    target = torch.tensor([classes.index(label) for label in y.tolist()])
    loss = F.cross_entropy(logits, target) + model.prompts.penalty()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def norm(gradients: Tensors, names: Iterable[str]) -> float:
    """The square root of the sum of all squares."""
    return sum(float(gradients[name].double().square().sum()) for name in names) ** 0.5


@every
@pytest.mark.parametrize("experiences", [1, 2])
@pytest.mark.parametrize("clip_over", ["trainable", "all"])
@pytest.mark.parametrize("pull", [0.0, 0.7])
def test_a_clipped_step_by_hand(name, experiences, clip_over, pull):
    """As google-research/l2p: g min(1, c / (N + 1e-6)), N over all leaves of the gradient, encoder too."""
    step = last_step(name, experiences, clip_over=clip_over, pull=pull)
    gradients, before = gradients_of_everything(step), dict(step.before.named_parameters())
    measured = norm(gradients, gradients if clip_over == "all" else step.gradients)
    assert measured > CLIP
    for parameter, got in step.gradients.items():
        clipped = gradients[parameter] * min(1.0, CLIP / (measured + 1e-6))
        torch.testing.assert_close(got, clipped, rtol=1e-5, atol=1e-8)
        after = before[parameter].detach() - RATE * clipped
        torch.testing.assert_close(step.after[parameter], after, rtol=1e-5, atol=1e-8)


@every
def test_with_the_backbone_in_the_norm_a_step_is_shorter(name):
    """The control: what the optimiser gets is as long as `clip`, or only what is left of it.

    Without the pull, whose gradient of keys that start small is much larger than all others at first.
    """
    step = last_step(name, clip_over="trainable", pull=0.0)
    assert norm(step.gradients, step.gradients) == pytest.approx(CLIP, rel=1e-3)
    step = last_step(name, clip_over="all", pull=0.0)
    gradients = gradients_of_everything(step)
    share = norm(gradients, step.gradients) / norm(gradients, gradients)
    assert norm(step.gradients, step.gradients) == pytest.approx(share * CLIP, rel=1e-3)
    assert share < 0.9


@every
def test_the_weights_that_are_measured_stay_frozen(name):
    assert last_step(name, clip_over="all").others == []
    run, other = Run(name, epochs=1, clip_over="all"), Run(name, epochs=1)
    assert run.spy.in_optimizer == run.spy.require_grad
    assert [len(held) for held in run.spy.in_optimizer] == [len(held) for held in other.spy.in_optimizer]
    backbone = [(k, p) for k, p in run.model.named_parameters() if k in run.before and not run.method.owns(k)]
    assert all(torch.equal(p, run.before[key]) and p.grad is None for key, p in backbone)
    assert not any(p.requires_grad for _, p in backbone)
    trained = [
        key for key in run.after[-1] if key not in run.before and run.after[-1][key].is_floating_point()
    ]
    assert any(not torch.equal(run.after[-1][key], other.after[-1][key]) for key in trained)


@every
def test_under_mixed_precision_the_backbones_gradients_are_not_lost(name):
    """The query is computed first, without gradients, and autocast keeps the weights that it has cast."""
    step = LastStep()
    method = METHODS[name].load()(clip=CLIP, clip_over="all", pull=0.0)
    strategy = harness("bf16", step, epochs=3, model=deep_vit(), method=method)
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=RATE)
    x, y = arrays(per_class=4)
    strategy.train(experiences_of(x, y, y // 2)[0])
    gradients = gradients_of_everything(step, "bf16")
    measured = norm(gradients, gradients)
    assert CLIP < norm(gradients, step.gradients) < 0.9 * measured
    for parameter, got in step.gradients.items():
        clipped = gradients[parameter] * CLIP / measured
        torch.testing.assert_close(got, clipped, rtol=1e-3, atol=1e-6)


@every
def test_a_step_that_fails_leaves_no_weight_to_train(name):
    """An error between the passes ends the experience; the next one trains what it should."""
    run = Run(name, epochs=1, experiences=0, clip_over="all")
    run.strategy = learner(run.model, run.method, [Failing(), run.spy], epochs=1)
    with pytest.raises(DivergedError):
        run.learn(0)
    run.strategy = learner(run.model, run.method, [run.spy], epochs=1)
    run.learn(1)
    own = {id(p) for key, p in run.model.named_parameters() if run.method.owns(key)}
    assert run.spy.in_optimizer[-1] == run.spy.require_grad[-1]
    assert run.spy.in_optimizer[-1] <= own


class Failing(SupervisedPlugin):
    """Ends the first step between its passes."""

    def before_backward(self, strategy, *args, **kwargs):
        raise DivergedError


@every
def test_the_recipe_clips_as_the_official_code_and_the_default_does_not(name):
    method = METHODS[name].load()
    assert method().hyper.clip_over == "trainable"
    assert method.caveats(method().hyper) == ()
    for benchmark in ("cifar100", "imagenet-r", "digits"):
        recipe = method(**method.paper_options(benchmark)).hyper
        assert (recipe.clip, recipe.clip_over) == (1.0, "all")
        assert any("clip_over=all" in caveat for caveat in method.caveats(recipe))
