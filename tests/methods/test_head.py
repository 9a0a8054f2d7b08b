"""The growing classifier and the local loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from methods.head import ClassHead, HeadPerExperience, mask_logits


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


def test_classes_that_come_again_are_trained_again_and_get_no_second_head():
    head = ClassHead(4, "default")
    first = head.grow([0, 1])
    first.requires_grad_(False)
    second = head.grow([2])
    assert not first.weight.requires_grad
    again = head.grow([0, 1, 3])
    assert head.heads == [first, second, again]
    assert again.out_features == 1
    assert first.weight.requires_grad
    assert head(torch.randn(2, 4)).shape == (2, 4)
    assert [module.classes.tolist() for module in head.tasks] == [[0, 1], [2], [0, 1, 3]]
    last = head.grow([3, 2])
    assert not list(last.parameters())
    assert head.heads == [first, second, again]


def test_whether_experiences_share_classes():
    head = ClassHead(4)
    head.grow([0, 1])
    head.grow([2])
    assert not head.shares_classes
    head.grow([2])
    assert head.shares_classes


def test_rows_are_set_by_the_class_id():
    head = ClassHead(3)
    head.grow([4, 1])
    head.grow([0])
    weight, bias = torch.randn(2, 3), torch.randn(2)
    head.assign(torch.tensor([0, 4]), weight, bias)
    x = torch.randn(5, 3)
    torch.testing.assert_close(head(x)[:, [0, 4]], x @ weight.T + bias)
    assert (head(x)[:, 1] == 0).all()


def test_of_several_heads_that_know_a_class_the_largest_logit_counts():
    head = HeadPerExperience(3, "default")
    first, second = head.grow([0, 2]), head.grow([2, 3])
    x = torch.randn(6, 3)
    logits = head(x)
    torch.testing.assert_close(logits[:, 2], torch.maximum(first(x)[:, 1], second(x)[:, 0]))
    torch.testing.assert_close(logits[:, [0]], first(x)[:, [0]])
    assert torch.isinf(logits[:, 1]).all()
