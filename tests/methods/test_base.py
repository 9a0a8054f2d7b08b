"""What the methods share: the optimiser's content, and passes over the training images."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

from methods.base import Method, adam, reset_optimizer, trainable
from methods.passes import autocast_of, clean_batches
from tests.conftest import synthetic, tiny_vit


def test_a_reset_replaces_the_content_and_drops_rates_and_momentum():
    old, new = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([old], lr=0.1, betas=(0.5, 0.9))
    old.sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-9
    reset_optimizer(optimizer, [new])
    assert [p for group in optimizer.param_groups for p in group["params"]] == [new]
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert not optimizer.state
    kept = old.detach().clone()
    new.sum().backward()
    optimizer.step()
    assert torch.equal(old, kept)
    assert not torch.equal(new, torch.ones(2))


def test_a_reset_optimiser_keeps_the_handle_of_its_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    new = nn.Parameter(torch.ones(1))
    reset_optimizer(optimizer, [new])
    new.sum().backward()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


class Passes(SupervisedPlugin):
    """Runs a pass before training, and writes down what it saw and what it disturbed."""

    def before_training_exp(self, strategy, *args, **kwargs):
        loader, state = strategy.dataloader, torch.get_rng_state()
        self.batches = [(x.clone(), y.clone()) for x, y in clean_batches(strategy)]
        self.undisturbed = strategy.dataloader is loader and torch.equal(torch.get_rng_state(), state)
        strategy.stop_training()

    def before_training_epoch(self, strategy, *args, **kwargs):
        strategy.stop_training()


def test_a_clean_pass_sees_every_image_once_in_order_and_not_augmented():
    images, labels = synthetic(per_class=5)
    data = TensorDataset(images, labels)
    data.targets = labels.tolist()
    groups = {"train": (lambda x: x * 0, None), "eval": (None, None)}
    stream = with_classes_timeline(
        benchmark_from_datasets(train=[as_classification_dataset(data, transform_groups=groups)])
    ).train_stream
    passes, model = Passes(), tiny_vit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Naive(
        model=model, optimizer=optimizer, train_mb_size=4, eval_mb_size=7, plugins=[passes], evaluator=None
    ).train(stream[0])
    assert torch.equal(torch.cat([x for x, _ in passes.batches]), images)
    assert torch.equal(torch.cat([y for _, y in passes.batches]), labels)
    assert passes.undisturbed


def test_avalanches_own_strategies_have_no_mixed_precision():
    with autocast_of(object()):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_attaching_freezes_everything_but_the_methods_parts():
    model = tiny_vit()
    Method().attach(model)
    assert trainable(model) == []


@pytest.mark.parametrize(("init", "zero"), [("zero", True), ("default", False)])
def test_a_method_starts_its_heads_as_the_protocol_says(init, zero):
    model, method = tiny_vit(), Method(head_init=init)
    method.attach(model)
    model.head.grow([0, 1])
    assert (model.head.tasks[0].weight.abs().sum() == 0) == zero


def test_the_optimiser_updates_all_parameters_in_one_kernel_and_keeps_that_when_it_is_refilled():
    """As Adam's plain loop does, to rounding."""
    values, gradients = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    ours, plain = ([nn.Parameter(v.clone()) for v in values] for _ in range(2))
    optimizer, reference = adam(ours, lr=0.1), torch.optim.Adam(plain, lr=0.1)
    reset_optimizer(optimizer, ours)
    assert optimizer.param_groups[0]["fused"]
    for parameters, each in ((ours, optimizer), (plain, reference)):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        each.step()
    torch.testing.assert_close(ours, plain)
