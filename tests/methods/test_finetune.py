"""Sequential fine-tuning: of low-rank maps, or of the whole backbone."""

from __future__ import annotations

import pytest
import torch

from methods.errors import UsageError
from methods.finetune import READ_UNDER, Finetune, LoraHyper
from methods.hyper import fields_of
from methods.joint import Joint
from tests.conftest import deep_vit, tiny_vit
from tests.methods.conftest import FULL, Run


def backbone(run: Run) -> set[str]:
    """Names of the tensors of the plain model, without its classifier."""
    return {name for name in run.before if not name.startswith("head.")}


def test_full_fine_tuning_trains_every_tensor_of_the_backbone_in_every_experience(trained):
    run = trained(FULL)
    for before, after in zip([run.before, *run.after], run.after, strict=False):
        assert [name for name in backbone(run) if torch.equal(before[name], after[name])] == []


def test_low_rank_fine_tuning_changes_no_tensor_of_the_backbone(trained):
    run = trained("finetune")
    assert [name for name in backbone(run) if not torch.equal(run.before[name], run.after[-1][name])] == []


def test_the_state_holds_the_whole_model_if_the_whole_model_is_trained(trained):
    whole, maps = trained(FULL), trained("finetune")
    assert set(whole.method.state()) == set(whole.model.state_dict())
    assert set(maps.method.state()) == set(maps.model.state_dict()) - backbone(maps)


def test_the_optimiser_holds_the_backbone_and_the_current_head():
    run = Run(FULL, epochs=1, experiences=2)
    (group,) = run.strategy.optimizer.param_groups
    trainable = backbone(run) | {"head.tasks.1.weight", "head.tasks.1.bias"}
    assert len(group["params"]) == len(trainable)
    parameters = dict(run.model.named_parameters())
    assert {id(p) for p in group["params"]} == {id(parameters[name]) for name in trainable}


def test_full_fine_tuning_leaves_the_plain_vit(trained):
    run = trained(FULL)
    assert run.method.merge(run.model)
    assert all(block.attn.plug is None for block in run.model.blocks)
    assert [name for name in run.model.state_dict() if ".plug." in name] == []


def test_each_way_to_train_has_its_learning_rate():
    model = tiny_vit()
    for method, lr in ((Finetune(lr=3e-3), 3e-3), (Finetune(tune="full", full_lr=2e-5), 2e-5)):
        assert method.make_optimizer(model.parameters()).defaults["lr"] == lr


def test_joint_can_train_the_whole_backbone_too():
    run = Run("joint:tune=full", epochs=1)
    first, last = run.after[0], run.after[-1]
    assert [name for name in backbone(run) if not torch.equal(run.before[name], first[name])] == []
    assert [name for name in backbone(run) if torch.equal(first[name], last[name])] == []


@pytest.mark.parametrize("cls", [Finetune, Joint])
@pytest.mark.parametrize(
    ("tune", "option", "value"),
    [
        ("full", "rank", 4),
        ("full", "targets", "v"),
        ("full", "lr", 1e-3),
        ("lora", "full_lr", 1e-3),
    ],
)
def test_an_option_without_effect_is_refused(cls, tune, option, value):
    other = "lora" if tune == "full" else "full"
    legal = ", ".join(READ_UNDER[tune])
    message = (
        rf"{cls.name}.{option} is {value}, but {cls.name}.tune={tune} does not use it; "
        rf"legal with it: {legal}; leave {option} out, or set {cls.name}.tune={other}"
    )
    with pytest.raises(UsageError, match=message):
        cls.check(LoraHyper(tune=tune, **{option: value}), 5)
    cls.check(LoraHyper(tune=other, **{option: value}), 5)


def test_every_option_but_the_way_to_train_is_read_under_one_of_them():
    assert sorted(name for names in READ_UNDER.values() for name in names) == sorted(
        set(fields_of(LoraHyper)) - {"tune"}
    )


def test_a_plain_avalanche_run_refuses_it_before_it_trains():
    with pytest.raises(UsageError, match="tune=full does not use it"):
        Run(FULL, epochs=1, rank=4)


@pytest.mark.parametrize(("saved", "loaded"), [("lora", "full"), ("full", "lora")])
def test_a_state_of_the_other_way_to_train_is_refused(saved, loaded, trained):
    state = trained(FULL if saved == "full" else "finetune").method.state()
    with pytest.raises(UsageError, match="does not fit"):
        Finetune(tune=loaded).restore(deep_vit(), state)
