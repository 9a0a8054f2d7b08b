"""What methods with parts of each experience do in a stream of domains, where all classes are in each."""

from __future__ import annotations

import pytest
import torch

from methods.head import ClassHead
from methods.strategy import comes_again
from tests.methods.conftest import Run, domains, stream


def test_classes_come_again_in_a_stream_of_domains_only():
    assert [comes_again(e) for e in domains().train_stream] == [True] * 3
    assert [comes_again(e) for e in stream().train_stream] == [False] * 3


@pytest.mark.parametrize("name", ["finetune", "duallora", "inflora", "coda-prompt"])
def test_one_head_is_shared_and_trained_in_every_domain(name):
    run = Run(name, epochs=1, make_stream=domains)
    (head,) = run.model.head.heads
    weights = [after["head.tasks.0.weight"] for after in run.after]
    assert head.out_features == 6
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("calibration", ["softmax", "hard", "stick"])
def test_calibration_adds_nothing_where_all_experiences_share_their_classes(calibration, images):
    """Added to all classes alike it would change no prediction; `hard` would rule out all of them."""
    model = Run(f"duallora:calibration={calibration}", epochs=2, make_stream=domains).model
    read = []
    hook = model.head.register_forward_hook(lambda head, inputs, out: read.append((inputs[0], out)))
    with torch.no_grad():
        model(images)
        hook.remove()
        ((features, logits),) = read
        assert torch.equal(logits, ClassHead.forward(model.head, features))
    assert model.head.posterior.shape == (len(images), 3)


@pytest.mark.parametrize(("name", "table"), [("dualprompt", "prompt_choices"), ("l2p", "prompt_choices")])
def test_diagnostics_are_of_the_domains_learnt(name, table):
    run = Run(name, epochs=1, experiences=2, make_stream=domains)
    run.strategy.eval(run.benchmark.test_stream)
    assert len(run.method.diagnostics()[table]) == 2


def test_the_identity_of_a_domain_is_that_of_its_images_and_not_of_their_classes():
    run = Run("duallora", epochs=1, experiences=2, make_stream=domains)
    found = []
    for i in range(3):
        run.strategy.eval([run.benchmark.test_stream[i]])
        found.append(run.method.diagnostics().get("task_identity_accuracy"))
    assert found[0] + found[1] > 1.2
    assert found[2] is None
