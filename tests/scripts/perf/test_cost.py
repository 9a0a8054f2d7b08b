"""The cost script: every model is measured, and counts are right; no times are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from bench.cell.backbone import MICRO_ARCHITECTURE, MICRO_NAME
from methods.errors import UsageError
from scripts.common import in_turns, ratios, round_order
from scripts.perf import cost

WIDTH, DEPTH = MICRO_ARCHITECTURE["embed_dim"], MICRO_ARCHITECTURE["depth"]
HEAD = cost.CLASSES * (WIDTH + 1)
RANK = 2
LORA = DEPTH * 2 * 2 * RANK * WIDTH  # two maps per block, two matrices per map

TINY = ["--backbone", MICRO_NAME, "--image-size", "8", "--tasks", "2", "--rounds", "1", "--epochs", "2"]
TINY += ["--images-per-class", "1", "--inference-batches", "1,3", "--train-batch", "4"]


def setting(methods: str = f"finetune:rank={RANK},ncm", *more: str) -> cost.Setting:
    return cost.setting_of(cost.read([*TINY, "--methods", methods, *more])[1])


def learn_all(setting: cost.Setting) -> list[cost.Stage]:
    return [stage for choice in setting.methods for stage in cost.learn(choice, setting)]


@pytest.fixture(scope="module")
def stages() -> dict[str, cost.Stage]:
    return {stage.name: stage for stage in learn_all(setting())}


def names(*, steps: bool) -> list[str]:
    methods = [f"finetune:rank={RANK}"] + ([] if steps else ["ncm"])
    return [f"{method}@{t}" for method in methods for t in (1, 2)]


def head_sizes(model: Any) -> list[int]:
    return [len(head.classes) for head in model.head.tasks]


def test_a_stage_is_the_method_after_that_many_tasks(stages):
    assert list(stages) == names(steps=False)
    for name, stage in stages.items():
        assert not stage.model.training
        assert head_sizes(stage.model) == [cost.CLASSES] * int(name[-1])


def test_trained_and_stored_numbers_are_counted(stages):
    assert [(stage.trained, stage.stored) for stage in stages.values()] == [
        (LORA + HEAD, LORA + HEAD),
        (LORA + HEAD, LORA + 2 * HEAD),
        (0, HEAD),
        (0, 2 * HEAD),
    ]


def test_operations_are_those_of_products_of_matrices():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 7), torch.nn.ReLU())
    assert cost.operations(model, setting()) == 2 * 3 * 8 * 8 * 7


def test_operations_of_attention_are_counted_too():
    """8 x 8 pixels, patches of 4: 5 tokens. Two products of queries, keys and values over all of them."""
    model, tokens = cost.plain(setting()), 5
    products = DEPTH * (2 * 2 * tokens**2 * WIDTH + 2 * tokens * 12 * WIDTH**2)
    patches = 2 * (tokens - 1) * 3 * 4 * 4 * WIDTH
    head = 2 * WIDTH * cost.CLASSES * 2
    assert cost.operations(model, setting()) == products + patches + head


def test_the_methods_own_work_is_a_part_of_the_experience(stages):
    for stage in stages.values():
        assert 0 < stage.outside < stage.total


@pytest.mark.parametrize("t", [1, 2])
def test_a_step_trains_the_head_of_the_current_task(t):
    stage = cost.learn(setting().methods[0], setting())[t - 1]
    model = stage.stopped.model
    assert head_sizes(model) == [cost.CLASSES] * t
    assert model.training
    before = {name: p.clone() for name, p in model.named_parameters()}
    step = cost.step(stage.stopped, torch.randn(4, 3, 8, 8))
    for i in range(6):  # a head and an up-projection that start at zero keep the gradient back at first
        step(i)
    changed = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert f"head.tasks.{t - 1}.weight" in changed
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


def test_steps_leave_the_deployed_models_alone(stages):
    before = {name: stage.model.head.tasks[0].weight.clone() for name, stage in stages.items()}
    cost.steps(list(stages.values()), setting())
    for name, stage in stages.items():
        assert stage.model.head.tasks[0].weight.equal(before[name])


@pytest.mark.parametrize("batch", [1, 3])
def test_every_model_has_an_inference_time_and_the_plain_one_has_two(stages, batch):
    times = cost.inference(list(stages.values()), batch, setting())
    assert list(times) == [cost.PLAIN, cost.AGAIN, *names(steps=False)]
    assert all(len(column) == 1 and column[0] > 0 for column in times.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_that_makes_steps_has_a_time_for_one(stages, precision):
    times = cost.steps(list(stages.values()), setting("ncm", "--precision", precision))
    assert list(times) == [cost.PLAIN, cost.AGAIN, cost.HEAD_ONLY, *names(steps=True)]


def test_the_command_prints_each_table_with_the_noise_and_dashes_where_no_step_is_made(capsys):
    cost.main([*TINY, "--methods", "ncm"])
    first, _, one, three, step, learning = capsys.readouterr().out.strip().split("\n\n")
    assert first.startswith(f"{MICRO_NAME}, random weights, 8 x 8 pixels, fp32, ")
    assert f"torch {torch.__version__}" in first
    for table, title in ((one, "inference, batch 1"), (three, "inference, batch 3"), (step, "training step")):
        assert table.startswith(title)
        assert cost.AGAIN in table
    assert [line.split()[1:] for line in step.splitlines() if "ncm@" in line] == [["—", "—"]] * 2
    assert f"{2 * HEAD:,}" in learning.splitlines()[-1]


def test_by_default_every_method_that_trains_in_every_task_is_measured():
    measured = {choice.name for choice in cost.setting_of(cost.read(TINY)[1]).methods}
    assert {"finetune", "linear-probe", "ncm"} <= measured
    assert "joint" not in measured


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "joint"], "trains once, at the last task"),
        (["--methods", "ncm,finetun"], "did you mean 'finetune'"),
        (["--methods", "ncm", "--backbone", "vit_tinny_patch16_224"], "vit_tiny_patch16_224"),
        (["--methods", "ncm", "--image-size", "10"], "multiples of its patch size"),
        (["--methods", "ncm", "--tasks", "0"], "tasks: "),
        (["--methods", "ncm", "--inference-batches", "1,x"], "inference_batches"),
        (["--methods", "ncm,ncm"], "twice"),
        (["--methods", "ncm,finetune:rank=4000"], "finetune.rank is 4000"),
    ],
)
def test_mistakes_are_reported_before_anything_is_measured(arguments: Sequence[str], says: str, capsys):
    with pytest.raises(SystemExit) as stop:
        cost.main([*TINY, *arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert not printed.out


def test_a_method_that_trains_jointly_is_refused():
    with pytest.raises(UsageError, match="joint"):
        learn_all(setting("joint"))


def test_each_goes_first_in_turn_and_every_other_round_goes_backwards():
    assert [round_order("abcd", i) for i in range(4)] == [
        list("abcd"),
        list("badc"),
        list("cdab"),
        list("dcba"),
    ]


def test_every_function_runs_each_round_and_the_first_round_is_not_counted():
    calls: list[tuple[str, int]] = []
    functions = {name: lambda i, name=name: calls.append((name, i)) for name in "ab"}
    times = in_turns(functions, rounds=2, calls=2)
    assert calls == [(name, i) for i, order in enumerate(["ab", "ba", "ab"]) for name in order for _ in "12"]
    assert [len(column) for column in times.values()] == [2, 2]


def test_a_ratio_is_formed_within_its_round():
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "b") == {"a": [2.0, 3.0], "b": [1.0, 1.0]}
