"""SoRA: what a gate does, what the threshold does to it and to nothing else, and what is left of a map."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn

from methods.base import adam, trainable
from methods.errors import UsageError
from methods.finetune import Finetune
from methods.sora import GatedLowRank, Sora, official_threshold, soft_threshold
from methods.vit import Plug, open_seams
from tests.conftest import synthetic, tiny_vit
from tests.methods.conftest import SORA, Run, copy_of, learner, stream

WIDTH, RANK = 32, 16


def attached(model: Any = None, **options: Any) -> tuple[Any, Sora]:
    """A model with the adapter, in its first experience, at a threshold of 0.25 a step."""
    torch.manual_seed(0)
    model = model or tiny_vit()
    method = Finetune(adapter="sora", **options)
    method.attach(model)
    assert isinstance(method.adapter, Sora)
    method.adapter.size = 0.25
    method.adapter.zero = method.adapter.all_gates() == 0
    method.adapter.revived = torch.zeros_like(method.adapter.zero, dtype=torch.long)
    return model, method.adapter


def set_gates(adapter: Sora, gates: Tensor) -> None:
    with torch.no_grad():
        for gate in adapter.gates:
            gate.copy_(gates)


def randomise(adapter: Sora) -> None:
    """As if it had learnt: B is random, and in each map every other gate is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for maps in adapter.blocks:
            for gated in maps.values():
                gated.up.normal_()
                gated.gate.normal_()[::2] = 0.0


# ---- the map -------------------------------------------------------------------------------------


def test_a_map_by_hand():
    torch.manual_seed(0)
    gated = GatedLowRank(6, torch.tensor([0.5, -2.0, 0.0, 1.0]), alpha=12.0).double()
    nn.init.normal_(gated.up)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    change = torch.zeros(6, 6, dtype=torch.float64)
    for i, g in enumerate((0.5, -2.0, 0.0, 1.0)):
        change += 12.0 / 4 * g * torch.outer(gated.up[:, i], gated.down[i])
    torch.testing.assert_close(gated(x), x @ change.T, atol=1e-12, rtol=0)
    up, down = gated.pruned()
    assert down.shape == (3, 6)
    torch.testing.assert_close(up @ down, change, atol=1e-12, rtol=0)


def test_before_the_first_step_the_model_is_the_frozen_one_and_no_gate_is_zero():
    images = synthetic(per_class=1)[0]
    for init in ("ones", "normal"):
        model, adapter = attached(gate_init=init)
        changed = model.forward_features(images)
        for attention in open_seams(model):
            attention.plug = Plug()
        assert torch.equal(changed, model.forward_features(images))
        gates = adapter.all_gates()
        assert (gates != 0).all()
        assert (gates == 1).all() == (init == "ones")
        assert (gates < 0).any() == (init == "normal")


# ---- the threshold -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (soft_threshold, {0.5: 0.0, 1.0: 0.0, 1.5: 0.5, 1.99: 0.99, 2.5: 1.5}),
        (official_threshold, {0.5: 0.0, 1.0: 1.0, 1.5: 0.0, 1.99: 0.0, 2.5: 1.5}),
    ],
)
def test_thresholds_by_hand(threshold, expected):
    gates = torch.tensor([*expected], dtype=torch.float64)
    by_hand = torch.tensor([*expected.values()], dtype=torch.float64)
    torch.testing.assert_close(threshold(gates, 1.0), by_hand, atol=1e-15, rtol=0)
    torch.testing.assert_close(threshold(-gates, 1.0), -by_hand, atol=1e-15, rtol=0)
    assert ((threshold(gates, 1.0) == 0) == (by_hand == 0)).all()


def test_a_dose_is_the_sum_of_the_thresholds_of_an_experience():
    class Sizes(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = []

        def after_update(self, strategy, *args, **kwargs):
            self.seen.append(strategy.plugins[0].adapter.size)

    for epochs in (1, 3):
        sizes = Sizes()
        torch.manual_seed(0)
        method, benchmark = Finetune(adapter="sora", dose=0.7), stream()
        learner(tiny_vit(), method, [sizes], epochs=epochs).train(benchmark.train_stream[0])
        assert len(sizes.seen) == epochs * math.ceil(len(benchmark.train_stream[0].dataset) / 12)
        assert sum(sizes.seen) == pytest.approx(0.7)
        assert method.diagnostics()["gate_threshold"] == sizes.seen[0]


def maps_of(model: Any) -> list[GatedLowRank]:
    return [gated for block in model.blocks for gated in block.attn.plug.maps.values()]


class Step(SupervisedPlugin):
    """Trains one step with the gradients that `change` leaves, and keeps the tensors around it."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def before_update(self, strategy, *args, **kwargs):
        self.change(strategy.model)
        self.before = copy_of(strategy.model)

    def after_update(self, strategy, *args, **kwargs):
        self.after = copy_of(strategy.model)
        strategy.stop_training()

    def moved(self) -> dict[str, Tensor]:
        return {
            name: self.after[name] - then
            for name, then in self.before.items()
            if not torch.equal(self.after[name], then)
        }


def without_gradient(model: Any) -> None:
    """Zero gradients, gates of several sizes, and no other tensor zero."""
    for parameter in trainable(model):
        parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        for gated in maps_of(model):
            gated.up.normal_()
            gated.gate.copy_(torch.linspace(-10, 10, RANK))


class Skipping(Naive):
    """Takes no step, as where the loss was scaled and overflowed."""

    def optimizer_step(self):
        pass


class Scaled(Naive):
    """Leaves the step to a GradScaler that has seen an overflow."""

    def optimizer_step(self):
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(torch.ones(()))
        for parameter in trainable(self.model):
            parameter.grad.fill_(torch.inf)
        scaler.step(self.optimizer)


def one_step(change: Any, strategy: type[Naive] = Naive, **options: Any) -> tuple[Step, float]:
    torch.manual_seed(0)
    step, method = Step(change), Finetune(adapter="sora", dose=0.4, **options)
    run = learner(tiny_vit(), method, [step], epochs=1)
    run.__class__ = strategy
    run.train(stream().train_stream[0])
    return step, method.adapter.size


def test_without_gradients_a_step_moves_gates_only_and_each_by_the_threshold():
    step, size = one_step(without_gradient, head_init="default")
    moved = step.moved()
    assert size > 0
    assert len(moved) == 4
    for name, by in moved.items():
        assert name.endswith(".gate")
        torch.testing.assert_close(by, -size * step.before[name].sign(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", [Skipping, Scaled])
def test_where_a_step_is_skipped_nothing_moves(strategy):
    step, size = one_step(without_gradient, strategy)
    assert size > 0
    assert step.moved() == {}


@pytest.mark.parametrize(("rate", "left"), [(0.01, 0.0), (0.2, 0.13)])
def test_the_threshold_comes_after_the_optimisers_step(rate, left):
    """Of a gate of 0.03 that a step pushes up by the rate, and the threshold of 0.1 pulls down."""

    def push(model: Any) -> None:
        with torch.no_grad():
            for gated in maps_of(model):
                gated.gate.fill_(0.03)
                gated.gate.grad = torch.full_like(gated.gate, -1.0)

    step, size = one_step(push, lr=rate)
    assert size == pytest.approx(0.1)
    gates = torch.cat([tensor for name, tensor in step.after.items() if name.endswith(".gate")])
    torch.testing.assert_close(gates, torch.full((4 * RANK,), left), atol=1e-6, rtol=0)
    assert bool((gates == 0).all()) == (left == 0)


def test_an_experience_that_was_broken_off_leaves_no_second_threshold():
    torch.manual_seed(0)
    method, benchmark = Finetune(adapter="sora", dose=0.1), stream()

    class Break(SupervisedPlugin):
        broken = False

        def after_training_epoch(self, strategy, *args, **kwargs):
            if not self.broken:
                self.broken = True
                raise KeyboardInterrupt

    strategy = learner(tiny_vit(), method, [Break()], epochs=1)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(benchmark.train_stream[0])
    strategy.train(benchmark.train_stream[1])
    strategy.optimizer.zero_grad()
    before = method.adapter.all_gates()
    assert (before > method.adapter.size).all()
    strategy.optimizer.step()
    assert torch.equal(method.adapter.all_gates(), before)


def test_the_first_step_shrinks_gates_although_they_have_no_gradient_yet():
    gradients: dict[str, Tensor] = {}

    def look(model: Any) -> None:
        named = ((n, p) for n, p in model.named_parameters() if p.grad is not None)
        gradients.update({n: p.grad.clone() for n, p in named})

    step, size = one_step(look, head_init="default", gate_init="normal")
    gates = [name for name in step.before if name.endswith(".gate")]
    assert len(gates) == 4
    for name in gates:
        assert (gradients[name] == 0).all()
        before = step.before[name]
        expected = torch.where(before.abs() > size, before - size * before.sign(), 0.0)
        torch.testing.assert_close(step.after[name], expected, atol=1e-6, rtol=0)
    assert any((gradients[name.replace("gate", "up")] != 0).any() for name in gates)


@pytest.mark.parametrize(
    ("threshold", "rate", "revives"),
    [("soft", 0.2, False), ("soft", 0.3, True), ("official", 0.3, False), ("official", 0.6, True)],
)
def test_a_zero_gate_revives_if_a_step_is_larger_than_its_dead_zone(threshold, rate, revives):
    """Of the size of the threshold, 0.25, and in the official code of twice that; where B is not zero."""
    model, adapter = attached(threshold=threshold)
    randomise(adapter)
    zero = adapter.all_gates() == 0
    adapter.zero = zero
    optimizer = adam(adapter.gates, lr=rate)  # its first step is as large as the rate
    model.forward_features(synthetic(per_class=1)[0]).square().sum().backward()
    optimizer.step()
    adapter.after_step()
    active = adapter.all_gates() != 0
    assert bool(active[zero].any()) == revives
    revived = adapter.diagnostics()["revived_gates"]
    per_block = (active & zero).reshape(len(model.blocks), -1).sum(1)
    assert revived == per_block.tolist()


def test_where_gate_and_map_are_zero_nothing_has_a_gradient_any_more():
    """Why no gate may be zero at the start."""
    model, adapter = attached()
    set_gates(adapter, torch.tensor([0.0, 1.0] * (RANK // 2)))
    model.forward_features(synthetic(per_class=1)[0]).square().sum().backward()
    gated = adapter.blocks[0]["v"]
    assert (gated.up.grad[:, ::2] == 0).all()
    assert (gated.down.grad[::2] == 0).all()
    assert (gated.gate.grad == 0).all()
    assert (gated.up.grad[:, 1::2] != 0).any()


def test_gates_keep_small_steps_under_autocast():
    """bf16 has no number between 1 and 1 - 2^-8; four steps of 3e-4 would be lost in it."""
    model, adapter = attached()
    model.head.grow([0, 1])
    adapter.size = 3e-4
    optimizer = adam(trainable(model), lr=0.0)
    optimizer.register_step_post_hook(lambda *_: adapter.after_step())
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(synthetic(per_class=1)[0][:4])[:, :2].float().logsumexp(1).sum()
        loss.backward()
        optimizer.step()
    assert {gate.dtype for gate in adapter.gates} == {torch.float32}
    expected = torch.full((4 * RANK,), 1 - 4 * 3e-4)
    torch.testing.assert_close(adapter.all_gates(), expected, atol=1e-6, rtol=0)


# ---- the L1 term ---------------------------------------------------------------------------------


def test_the_l1_term_is_a_mean_over_all_gates_so_that_one_gates_share_falls_with_their_number():
    for depth, rank in ((1, 2), (2, 2), (1, 16)):
        _, adapter = attached(tiny_vit(depth=depth), l1=3.0, sora_rank=rank)
        set_gates(adapter, torch.linspace(-1.0, 2.0, rank))
        penalty = adapter.penalty()
        by_hand = 3.0 * sum(abs(g) for g in torch.linspace(-1.0, 2.0, rank).tolist()) / rank
        assert penalty.item() == pytest.approx(by_hand, rel=1e-6)
        penalty.backward()
        share = 3.0 / (2 * depth * rank)
        torch.testing.assert_close(adapter.gates[0].grad.abs(), torch.full((rank,), share))


def test_without_a_weight_there_is_no_l1_term():
    assert attached()[1].penalty() is None


# ---- later experiences ---------------------------------------------------------------------------


class AtStart(SupervisedPlugin):
    """The tensors when an experience begins, before and after the method prepared for it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[dict[str, Tensor]] = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.begun.append(copy_of(strategy.model))


def change_of(tensors: dict[str, Tensor], name: str) -> Tensor:
    up, down, gate = (tensors[f"{name}.{part}"].double() for part in ("up", "down", "gate"))
    return up @ torch.diag(gate) @ down


@pytest.mark.parametrize("reset", ["none", "each_task"])
def test_gates_go_on_or_are_folded_into_their_maps(reset):
    start = AtStart()
    # Of this dose every gate with little gradient is zero after the first experience.
    run = Run("finetune:adapter=sora", plugins=[], epochs=3, experiences=0, gate_reset=reset, dose=1.0)
    run.strategy = learner(run.model, run.method, [start], epochs=3)
    run.learn(0)
    run.learn(1)
    names = [name.removesuffix(".gate") for name in run.after[0] if name.endswith(".gate")]
    zero = torch.cat([run.after[0][f"{name}.gate"] == 0 for name in names])
    assert zero.any()
    for name in names:
        then, now = run.after[0], start.begun[1]
        torch.testing.assert_close(change_of(then, name), change_of(now, name), atol=1e-8, rtol=1e-5)
        assert torch.equal(then[f"{name}.gate"], now[f"{name}.gate"]) == (reset == "none")
        assert (now[f"{name}.gate"] == 1).all() == (reset == "each_task")
    first, second = ({n: t.shape for n, t in state.items() if ".plug." in n} for state in run.after)
    assert first == second


def test_active_ranks_are_counted_by_exact_zeros():
    model, adapter = attached()
    set_gates(adapter, torch.tensor([0.0, -0.0, 1e-30, -1e-12] + [1.0] * (RANK - 4)))
    diagnostics = adapter.diagnostics()
    assert diagnostics["active_rank_k"] == diagnostics["active_rank_v"] == [RANK - 2.0] * len(model.blocks)
    assert set(diagnostics) <= set(Finetune.diagnostic_help)


def test_what_is_reported_is_of_the_tensors_that_are_kept(trained):
    run = trained(SORA)
    state, diagnostics = run.method.state(), run.method.diagnostics()
    for target in "kv":
        kept = [state[f"blocks.{i}.attn.plug.maps.{target}.gate"] for i in range(5)]
        assert diagnostics[f"active_rank_{target}"] == [float((gate != 0).sum()) for gate in kept]
    ranks = diagnostics["active_rank_k"]
    assert 0 < sum(ranks) < 5 * RANK  # the contract runs on some gates of either kind


# ---- merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["q", "k", "v", "qkv"])
def test_merging_prunes_without_scaling_what_is_left(targets):
    images = synthetic(per_class=2)[0]
    model, adapter = attached(targets=targets, alpha=8.0)
    randomise(adapter)
    with torch.no_grad():
        expected = model.forward_features(images)
        adapter.merge(model)
        torch.testing.assert_close(model.forward_features(images), expected, atol=1e-5, rtol=1e-5)
    assert all(attention.plug is None for attention in open_seams(model))


def test_with_all_gates_zero_the_model_is_the_frozen_one_and_merges_to_it():
    images = synthetic(per_class=1)[0]
    model, adapter = attached()
    randomise(adapter)
    set_gates(adapter, torch.zeros(RANK))
    plain = tiny_vit()
    with torch.no_grad():
        plugged = model.forward_features(images)
        bare = copy.deepcopy(model)
        for attention in open_seams(bare):
            attention.plug = Plug()
        assert torch.equal(plugged, bare.forward_features(images))
        adapter.merge(model)
        assert torch.equal(model.forward_features(images), plain.forward_features(images))
    assert all(
        torch.equal(a, b) for a, b in zip(model.blocks.parameters(), plain.blocks.parameters(), strict=True)
    )


# ---- sizes and options ---------------------------------------------------------------------------


def test_the_number_of_parameters_of_a_vit_b():
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
        Finetune(adapter="sora").attach(model)
    gates = [p for n, p in model.named_parameters() if n.endswith(".gate")]
    assert sum(p.numel() for p in gates) == 384
    assert sum(p.numel() for p in trainable(model)) == 589_824 + 384


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(UsageError, match=r"finetune.sora_rank is 33; legal: at most .* 32"):
        Finetune(adapter="sora", sora_rank=33).attach(tiny_vit())
