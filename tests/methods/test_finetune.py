"""Sequential fine-tuning: of an adapter, or of the whole backbone; sora and clora have files of their own."""

from __future__ import annotations

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from methods.errors import UsageError
from methods.finetune import ADAPTERS, READ_UNDER, Finetune, FinetuneHyper
from methods.hyper import fields_of
from methods.joint import Joint
from methods.lora import LowRank
from tests.conftest import deep_vit, tiny_vit
from tests.methods.conftest import CLORA, FULL, SORA, Run


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
    for method, lr in ((Finetune(lr=3e-3), 3e-3), (Finetune(adapter="full", full_lr=2e-5), 2e-5)):
        assert method.make_optimizer(model.parameters()).defaults["lr"] == lr


def test_joint_can_train_the_whole_backbone_too():
    run = Run("joint:adapter=full", epochs=1)
    first, last = run.after[0], run.after[-1]
    assert [name for name in backbone(run) if not torch.equal(run.before[name], first[name])] == []
    assert [name for name in backbone(run) if torch.equal(first[name], last[name])] == []


def test_lora_draws_its_maps_block_by_block_and_nothing_else():
    """So that its numbers are those of the time before there were other adapters."""
    model = deep_vit()
    torch.manual_seed(3)
    Finetune().attach(model)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    expected = [LowRank(32, 10) for _ in model.blocks for _ in "kv"]
    assert torch.equal(torch.get_rng_state(), after)
    maps = [pair for block in model.blocks for pair in block.attn.plug.maps.values()]
    assert all(torch.equal(a.down, b.down) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize("cls", [Finetune, Joint])
@pytest.mark.parametrize(
    ("adapter", "option", "value", "others"),
    [
        ("full", "rank", 4, "lora"),
        ("full", "targets", "v", "lora or sora or clora"),
        ("full", "lr", 1e-3, "lora or sora or clora"),
        ("lora", "full_lr", 1e-3, "full"),
        ("lora", "dose", 0.5, "sora"),
        ("sora", "rank", 4, "lora"),
        ("sora", "spaces", 2, "clora"),
        ("clora", "l1", 0.5, "sora"),
    ],
)
def test_an_option_without_effect_is_refused(cls, adapter, option, value, others):
    legal = ", ".join(READ_UNDER[adapter])
    message = (
        rf"{cls.name}.{option} is {value}, but {cls.name}.adapter={adapter} does not use it; "
        rf"legal with it: {legal}; leave {option} out, or set {cls.name}.adapter={others}$"
    )
    with pytest.raises(UsageError, match=message):
        cls.check(FinetuneHyper(adapter=adapter, **{option: value}), 5)
    for other in others.split(" or "):
        cls.check(FinetuneHyper(adapter=other, **{option: value}), 5)


@pytest.mark.parametrize(
    ("adapter", "option", "value", "legal"),
    [("sora", "gate_reset", "each_task", "none"), ("clora", "spaces_after_first", "freeze", "train")],
)
def test_joint_refuses_what_is_about_later_tasks(adapter, option, value, legal):
    hyper = FinetuneHyper(adapter=adapter, **{option: value})
    Finetune.check(hyper, 5)
    with pytest.raises(
        UsageError, match=rf"joint.{option} is {value}, but joint trains once.*legal: {legal}"
    ):
        Joint.check(hyper, 5)


class Reports(SupervisedPlugin):
    """What the method reports after each experience."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, object]] = []

    def after_training_exp(self, strategy, *args, **kwargs):
        self.seen.append(dict(strategy.plugins[0].diagnostics()))


@pytest.mark.parametrize("adapter", ["sora", "clora"])
def test_joint_trains_with_an_adapter_at_its_end_only(adapter):
    reports = Reports()
    run = Run(f"joint:adapter={adapter}", epochs=1, plugins=[reports])
    added = [name for name in run.after[0] if ".plug." in name or name.startswith("spaces.")]
    assert added
    first, last = run.after[0], run.after[-1]
    assert all(torch.equal(first[name], run.after[1][name]) for name in added)
    assert [name for name in added if torch.equal(first[name], last[name])] == []
    assert reports.seen[:2] == [{}, {}]
    assert set() < set(reports.seen[2]) <= set(run.method.diagnostic_help)


def test_every_adapter_says_which_options_it_reads():
    assert set(READ_UNDER) == set(ADAPTERS)
    assert {name for names in READ_UNDER.values() for name in names} == set(fields_of(FinetuneHyper)) - {
        "adapter"
    }


def test_a_plain_avalanche_run_refuses_it_before_it_trains():
    with pytest.raises(UsageError, match="adapter=full does not use it"):
        Run(FULL, epochs=1, rank=4)


def test_an_adapter_with_a_publication_says_what_is_not_from_it():
    for adapter, source in (("sora", "arXiv 2311.11696"), ("clora", "arXiv 2512.24603")):
        hyper = FinetuneHyper(adapter=adapter)
        for cls in (Finetune, Joint):
            told = " ".join(cls.caveats(hyper))
            assert source in told
            assert "not of continual learning" in told
            assert "no class-incremental number of it is published" in told
            assert "this project's" in told
    assert Finetune.caveats(FinetuneHyper()) == Finetune.caveats(FinetuneHyper(adapter="full")) == ()


def test_the_option_tells_apart_what_differs_by_a_hyphen():
    help_line = fields_of(FinetuneHyper)["adapter"].description or ""
    assert all(number in help_line for number in ("2311.11696", "2512.24603", "2502.17920", "2304.06027"))


@pytest.mark.parametrize("benchmark", ["cifar100", "imagenet-r", "digits"])
def test_no_recipe_is_claimed(benchmark):
    assert Finetune.paper(benchmark) == Finetune.paper_options(benchmark) == {}


CASES = {"lora": "finetune", "full": FULL, "sora": SORA, "clora": CLORA}


@pytest.mark.parametrize(("saved", "loaded"), [(a, b) for a in CASES for b in CASES if a != b])
def test_a_state_of_another_adapter_is_refused(saved, loaded, trained):
    with pytest.raises(UsageError, match="does not fit"):
        Finetune(adapter=loaded).restore(deep_vit(), trained(CASES[saved]).method.state())
