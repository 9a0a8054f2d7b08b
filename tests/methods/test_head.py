"""The growing classifier and the local loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from methods.head import ClassHead, mask_logits


def test_class_ids_are_columns_and_unseen_classes_cannot_win():
    head = ClassHead(4)
    head.grow([5, 2])
    head.grow([0])
    for task in head.tasks:
        torch.nn.init.normal_(task.weight)
    x = torch.randn(3, 4)
    logits = head(x)
    assert logits.shape == (3, 6)
    assert torch.isinf(logits[:, [1, 3, 4]]).all()
    first, second = head.tasks
    torch.testing.assert_close(logits[:, [2, 5]], first(x))
    torch.testing.assert_close(logits[:, [0]], second(x))


@pytest.mark.parametrize(("init", "zero"), [("zero", True), ("default", False)])
def test_heads_start_as_asked(init, zero):
    head = ClassHead(4, init).grow([0, 1])
    assert (head.weight.abs().sum() == 0) == zero
    assert (head.bias.abs().sum() == 0) == zero


def test_the_local_loss_has_exactly_no_gradient_for_other_classes():
    head = ClassHead(4)
    old, new = head.grow([0, 1]), head.grow([2, 3])
    x = torch.randn(8, 4)
    F.cross_entropy(mask_logits(head(x), [2, 3]), torch.tensor([2, 3] * 4)).backward()
    assert torch.equal(old.weight.grad, torch.zeros(2, 4))
    assert torch.equal(old.bias.grad, torch.zeros(2))
    assert new.weight.grad.abs().sum() > 0


def test_the_local_loss_is_the_loss_of_the_current_head_alone():
    head = ClassHead(4, "default")
    head.grow([0, 1])
    new = head.grow([2, 3])
    x, y = torch.randn(8, 4), torch.tensor([2, 3] * 4)
    torch.testing.assert_close(
        F.cross_entropy(mask_logits(head(x), [2, 3]), y), F.cross_entropy(new(x), y - 2)
    )


def test_an_empty_head_says_what_to_do():
    with pytest.raises(RuntimeError, match="train on an experience first"):
        ClassHead(4)(torch.randn(1, 4))
