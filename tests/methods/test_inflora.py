"""InfLoRA: what a branch may change and when, where its input space lies, and what is left afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import SupervisedPlugin
from timm.models.vision_transformer import Attention
from torch import Tensor
from torch.utils.data import TensorDataset

from methods.base import Method, trainable
from methods.errors import UsageError
from methods.inflora import Branch, InfLora, input_moments
from methods.passes import clean_batches, eval_no_grad
from methods.vit import embed, open_seams, watching
from tests.conftest import synthetic, tiny_vit
from tests.methods.conftest import Run, copy_of, learner, stream

BLOCKS, WIDTH, RANK, TOKENS = 2, 32, 10, 17
EXPERIENCES = range(3)


@dataclass(frozen=True)
class Look:
    """The model at one moment of an experience, and what its blocks see of that experience's images."""

    tensors: dict[str, Tensor]
    memory: dict[str, Tensor]
    learning: dict[str, int]
    features: Tensor
    logits: Tensor | None
    inputs: list[Tensor]

    def protected(self, i: int) -> Tensor:
        """The projector (D, D), float64, on what the memory of block i protects."""
        if f"{i}.basis" not in self.memory:
            return torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        basis = self.memory[f"{i}.basis"].double()
        onto = basis @ basis.T
        return torch.eye(WIDTH, dtype=torch.float64) - onto if self.memory[f"{i}.retained"] else onto

    def weight(self, i: int, target: str) -> Tensor:
        """The rows (D, D), float64, of one projection of block i."""
        return self.tensors[f"blocks.{i}.attn.qkv.weight"].double().chunk(3)["qkv".index(target)]

    def branch(self, i: int, part: str) -> Tensor:
        return self.tensors[f"blocks.{i}.attn.plug.{part}"].double()


def inputs_of(model: Any, batches: list[Tensor]) -> list[Tensor]:
    """Every block's normalised inputs (tokens, D), float64."""
    seen: list[list[Tensor]] = [[] for _ in model.blocks]
    with (
        eval_no_grad(model),
        watching(open_seams(model), lambda i, x: seen[i].append(x.double().flatten(0, 1))),
    ):
        for x in batches:
            model.forward_features(x)
    return [torch.cat(parts) for parts in seen]


def look(strategy: Any, method: InfLora, batches: list[Tensor]) -> Look:
    model, images = strategy.model, synthetic(per_class=3, seed=1)[0]
    with eval_no_grad(model):
        features = embed(model, images)
        logits = model(images) if len(model.head.tasks) else None
    learning = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    memory = {name: tensor.clone() for name, tensor in method.memory.items()}
    return Look(copy_of(model), memory, learning, features, logits, inputs_of(model, batches))


class Witness(SupervisedPlugin):
    """Looks at every experience before it, once its branch is in place, once trained, and when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.bare: list[Look] = []
        self.begun: list[Look] = []
        self.trained: list[Look] = []
        self.over: list[Look] = []
        self.diagnostics: list[dict[str, Any]] = []

    def before_training(self, strategy, *args, **kwargs):
        self.bare.append(look(strategy, strategy.plugins[0], [synthetic()[0]]))

    def before_training_exp(self, strategy, *args, **kwargs):
        self.begun.append(self.now(strategy))

    def after_training_epoch(self, strategy, *args, **kwargs):
        self.trained[len(self.over) :] = [self.now(strategy)]

    def after_training_exp(self, strategy, *args, **kwargs):
        self.over.append(self.now(strategy))
        self.diagnostics.append(strategy.plugins[0].diagnostics())

    def now(self, strategy: Any) -> Look:
        return look(strategy, strategy.plugins[0], [x for x, _ in clean_batches(strategy)])


OPTIONS: dict[str, dict[str, Any]] = {
    "as published": {},
    "by squares": {"energy": "sigma2"},
    "low": {"lamb": 0.5, "rank": 3},
}


@pytest.fixture(scope="module", params=list(OPTIONS))
def learnt(request) -> SimpleNamespace:
    """A run and what a witness saw of it; the options differ in when the complement is kept."""
    witness = Witness()
    run = Run("inflora", epochs=4, plugins=[witness], vit=tiny_vit, **OPTIONS[request.param])
    return SimpleNamespace(name=request.param, run=run, witness=witness, hyper=run.method.hyper)


@pytest.fixture(scope="module")
def seen(learnt) -> Witness:
    return learnt.witness


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    return {n for n in first.keys() | second.keys() if not torch.equal(first[n], second[n])}


def test_the_runs_keep_both_kinds_of_basis(learnt):
    """What the tests below say of either kind would otherwise be values of one."""
    kinds = [[bool(over.memory[f"{i}.retained"]) for i in range(BLOCKS)] for over in learnt.witness.over]
    switch = {"as published": 1, "by squares": 0, "low": 3}[learnt.name]
    assert kinds == [BLOCKS * [task >= switch] for task in EXPERIENCES]


# ---- what is learnt, and what is not -----------------------------------------------------------


def test_a_new_branch_changes_no_output(seen):
    for before, begun in zip(seen.bare, seen.begun, strict=True):
        torch.testing.assert_close(begun.features, before.features, atol=1e-6, rtol=1e-6)
        if before.logits is not None:
            old = before.logits.isfinite().all(0).nonzero().flatten()
            torch.testing.assert_close(begun.logits[:, old], before.logits[:, old], atol=1e-6, rtol=1e-6)


def test_only_the_ups_and_the_new_head_learn(learnt):
    for task, begun in enumerate(learnt.witness.begun):
        ups = {f"blocks.{i}.attn.plug.up_{target}" for i in range(BLOCKS) for target in "kv"}
        assert set(begun.learning) == ups | {f"head.tasks.{task}.weight", f"head.tasks.{task}.bias"}
        assert sum(begun.learning.values()) == 2 * learnt.hyper.rank * WIDTH * BLOCKS + 2 * (WIDTH + 1)


@pytest.mark.parametrize(("classes", "count"), [(10, 192_010), (20, 199_700)])
def test_as_many_parameters_learn_in_a_vit_b_16_as_published(classes, count):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
        down = torch.empty(InfLora().hyper.rank, model.embed_dim)
    method = InfLora()
    method.attach(model)
    model.head.grow(range(classes))
    for attention in method.attentions:
        attention.plug = Branch(down)
    assert sum(p.numel() for p in trainable(model)) == count


def test_everything_else_stays_bit_identical_during_an_experience(seen):
    for task in EXPERIENCES:
        begun, trained = seen.begun[task], seen.trained[task]
        assert differing(begun.tensors, trained.tensors) == set(begun.learning)
        assert differing(begun.memory, trained.memory) == set()


def test_only_keys_and_values_change_when_an_experience_is_over(seen):
    for task in EXPERIENCES:
        before, over = seen.begun[task], seen.over[task]
        kept = {n: t for n, t in before.tensors.items() if n in over.tensors}
        weights = {f"blocks.{i}.attn.qkv.weight" for i in range(BLOCKS)}
        head = {f"head.tasks.{task}.weight", f"head.tasks.{task}.bias"}
        assert differing(kept, {n: over.tensors[n] for n in kept}) == weights | head
        assert all(torch.equal(before.weight(i, "q"), over.weight(i, "q")) for i in range(BLOCKS))


# ---- where a branch looks ----------------------------------------------------------------------


def test_a_design_is_one_buffer_for_keys_and_values():
    branch = Branch(torch.eye(3, 8))
    assert {name for name, _ in branch.named_parameters()} == {"up_k", "up_v"}
    assert {name for name, _ in branch.named_buffers()} == {"down"}
    branch.up_k.data += 1
    branch.up_v.data += 2
    x, nothing = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 5, 8)
    q, k, v = branch.project(x, nothing, nothing, nothing)
    assert torch.equal(q, nothing)
    torch.testing.assert_close(k, x[..., :3].sum(-1, keepdim=True).expand(4, 5, 8))
    torch.testing.assert_close(v, 2 * k)


def test_designs_take_the_most_of_the_new_inputs_that_is_outside_the_protected_space(learnt):
    """The leading singular vectors of (I - P) C, in rows of norm 1/sqrt(3); zero if none is left."""
    rank = learnt.hyper.rank
    for begun in learnt.witness.begun:
        for i, inputs in enumerate(begun.inputs):
            down, c = begun.branch(i, "down"), inputs.T @ inputs / len(inputs)
            outside = c - begun.protected(i) @ c
            norms = (torch.arange(rank) < (WIDTH - begun.protected(i).trace()).round()).double() / 3
            torch.testing.assert_close(down @ down.T, norms.diag(), atol=1e-6, rtol=0)
            most = torch.linalg.svdvals(outside)[:rank].square().sum()
            torch.testing.assert_close(3 * (down @ outside).square().sum(), most, rtol=1e-4, atol=0)


def test_the_change_of_the_weights_is_zero_in_the_protected_space(seen):
    for task in EXPERIENCES[1:]:
        before, over = seen.begun[task], seen.over[task]
        for i in range(BLOCKS):
            assert before.protected(i).trace() > 2
            for target in "kv":
                change = over.weight(i, target) - before.weight(i, target)
                assert (change @ before.protected(i)).norm() < 1e-6 * change.norm()


def response(change: Tensor, inputs: Tensor) -> float:
    """||dW u|| / (||dW|| ||u||), root mean square over the inputs u (n, D)."""
    return float((inputs @ change.T).norm() / (torch.linalg.matrix_norm(change, 2) * inputs.norm()))


def test_old_inputs_are_answered_as_before_up_to_what_the_memory_does_not_hold(seen):
    """Stored inputs of earlier experiences; the bound is that share's root."""
    for task in EXPERIENCES[1:]:
        before, over = seen.begun[task], seen.over[task]
        for earlier in EXPERIENCES[:task]:
            for i, inputs in enumerate(seen.over[earlier].inputs):
                missed = inputs - inputs @ before.protected(i)
                for target in "kv":
                    change = over.weight(i, target) - before.weight(i, target)
                    assert response(change, inputs) <= missed.norm() / inputs.norm() + 1e-6


def test_a_random_design_would_disturb_old_inputs_much_more():
    """The same trained ups behind random rows: the control of the test above."""
    seen = Witness()
    Run("inflora", epochs=4, plugins=[seen], vit=tiny_vit, energy="sigma2", lamb=0.99)
    begun, trained, old = seen.begun[1], seen.trained[1], seen.over[0]
    rows = torch.randn(RANK, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(BLOCKS):
        for up in (trained.branch(i, "up_k"), trained.branch(i, "up_v")):
            designed = response(up @ begun.branch(i, "down"), old.inputs[i])
            assert designed < 0.4 * response(up @ rows, old.inputs[i])


# ---- afterwards --------------------------------------------------------------------------------


def test_merging_changes_no_logit(seen):
    for trained, over in zip(seen.trained, seen.over, strict=True):
        torch.testing.assert_close(over.logits, trained.logits, atol=1e-5, rtol=1e-5)


def test_a_merged_branch_is_its_product_in_the_weight(seen):
    for begun, trained, over in zip(seen.begun, seen.trained, seen.over, strict=True):
        for i in range(BLOCKS):
            for target in "kv":
                added = trained.branch(i, f"up_{target}") @ trained.branch(i, "down")
                assert added.norm() > 1e-3
                expected = begun.weight(i, target) + added
                torch.testing.assert_close(over.weight(i, target), expected, atol=1e-7, rtol=1e-6)


def test_inference_is_one_pass_through_timms_own_attention(learnt, images, monkeypatch):
    model, calls = learnt.run.model, []
    forward = Attention.forward
    monkeypatch.setattr(
        Attention, "forward", lambda self, x, *a, **k: calls.append("attn") or forward(self, x)
    )
    hook = model.patch_embed.register_forward_hook(lambda *_: calls.append("embed"))
    with torch.no_grad():
        model(images)
    hook.remove()
    assert calls == ["embed"] + BLOCKS * ["attn"]
    assert all(block.attn.plug is None for block in model.blocks)


# ---- the memory --------------------------------------------------------------------------------


def test_the_threshold_grows_with_the_experiences_done_over_all_there_are():
    """t from 0 and all of T: the last one stays below `lame`."""
    method = InfLora(lamb=0.95, lame=1.0)
    experiences = [SimpleNamespace(current_experience=t, origin_stream=range(10)) for t in range(10)]
    expected = [0.95, 0.955, 0.96, 0.965, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995]
    assert [method.threshold(e) for e in experiences] == pytest.approx(expected)


def test_diagnostics_say_what_they_describe_of_every_block(learnt):
    hyper = learnt.hyper
    for task, values in enumerate(learnt.witness.diagnostics):
        assert set(values) == set(InfLora.diagnostic_help)
        assert values["threshold"] == pytest.approx(hyper.lamb + (hyper.lame - hyper.lamb) * task / 3)
        assert len(values["subspace_size"]) == len(values["captured_energy"]) == BLOCKS
        for share in values["captured_energy"]:
            assert share >= values["threshold"] if task else share < values["threshold"]


def test_the_memory_holds_the_inputs_as_they_are_after_training(learnt):
    """Size and captured energy again, from the inputs themselves."""
    power = 2 if learnt.hyper.energy == "sigma4" else 1
    for task, values in enumerate(learnt.witness.diagnostics):
        trained, over = learnt.witness.trained[task], learnt.witness.over[task]
        for i, inputs in enumerate(trained.inputs):
            m = torch.linalg.matrix_power(inputs.T @ inputs / len(inputs), power)
            share = (over.protected(i) @ m).trace() / m.trace()
            assert values["captured_energy"][i] == pytest.approx(float(share), abs=1e-5)
            assert values["subspace_size"][i] == pytest.approx(float(over.protected(i).trace()), abs=1e-4)


def test_what_is_protected_stays_protected(seen):
    for first, second in zip(seen.over, seen.over[1:], strict=False):
        for i in range(BLOCKS):
            inside = second.protected(i) @ first.protected(i)
            torch.testing.assert_close(inside, first.protected(i), atol=1e-5, rtol=0)


def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped():
    """Learning the third experience needs the memory of the first two."""
    torch.manual_seed(0)
    experiences = stream().train_stream
    model, method = tiny_vit(), InfLora()
    strategy = learner(model, method, epochs=2)
    for experience in experiences[:2]:
        strategy.train(experience)
    state = method.state()
    assert {name for name in state if name.startswith("memory.")} == {
        f"memory.{i}.{part}" for i in range(BLOCKS) for part in ("basis", "retained")
    }
    torch.manual_seed(1)
    strategy.train(experiences[2])

    again, resumed = tiny_vit(), InfLora()
    resumed.restore(again, state)
    torch.manual_seed(1)
    learner(again, resumed, epochs=2).train(experiences[2])
    assert differing(copy_of(again), copy_of(model)) == set()
    assert differing(resumed.state(), method.state()) == set()


# ---- passes for statistics -----------------------------------------------------------------------


def noisy(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn_like(x)


def halved(x: Tensor) -> Tensor:
    return x / 2


def looker(augment: Callable[[Tensor], Tensor] | None = None, **extras: Any) -> SimpleNamespace:
    """As much of a strategy as a pass over the training images asks for."""
    images, labels = synthetic(per_class=4)
    data = TensorDataset(images, labels)
    data.targets = labels.tolist()
    groups = {"train": (augment, None), "eval": (None, None)}
    dataset = as_classification_dataset(data, transform_groups=groups)
    device = torch.device("cpu")
    return SimpleNamespace(model=tiny_vit(), adapted_dataset=dataset, device=device, eval_mb_size=7, **extras)


def moments_of(strategy: Any) -> list[Tensor]:
    return [moment.mean for moment in input_moments(strategy, open_seams(strategy.model))]


def direct(images: Tensor) -> list[Tensor]:
    """E[u u^T] of every block's inputs, from all of them at once."""
    return [u.T @ u / len(u) for u in inputs_of(tiny_vit(), [images])]


def test_moments_are_those_of_all_tokens_of_all_images():
    strategy = looker()
    images = synthetic(per_class=4)[0]
    moments = input_moments(strategy, open_seams(strategy.model))
    assert [moment.rows for moment in moments] == BLOCKS * [TOKENS * len(images)]
    for moment, expected in zip(moments, direct(images), strict=True):
        torch.testing.assert_close(moment.mean, expected, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_augmented_images():
    """By Avalanche's transforms for training, or by the collate function a strategy has for the purpose."""
    asked = []

    def statistics_collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        asked.append(len(items))
        return halved(torch.stack([x for x, *_ in items])), torch.tensor([y for _, y, *_ in items])

    expected = direct(halved(synthetic(per_class=4)[0]))
    for strategy in (looker(halved), looker(statistics_collate=statistics_collate)):
        for mean, other in zip(moments_of(strategy), expected, strict=True):
            torch.testing.assert_close(mean, other, rtol=1e-4, atol=1e-5)
    assert asked == [7, 7, 7, 3]
    assert not torch.allclose(moments_of(looker())[0], expected[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_draws_no_random_number_of_trainings_and_leaves_the_mode(training):
    strategy = looker(noisy)
    strategy.model.train(training)
    state = torch.get_rng_state()
    first = moments_of(strategy)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training == training for module in strategy.model.modules())
    torch.manual_seed(12345)
    assert not torch.equal(moments_of(strategy)[0], first[0]), "the augmentation draws random numbers"


class Passes(SupervisedPlugin):
    """More passes for statistics than the method makes."""

    def before_training_epoch(self, strategy, *args, **kwargs):
        input_moments(strategy, strategy.plugins[0].attentions)


def test_training_is_the_same_with_and_without_more_passes():
    def end_of(plugins: list[Any]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, method = tiny_vit(), InfLora()
        strategy = learner(model, method, plugins, epochs=2)
        for experience in stream(noisy).train_stream[:2]:
            strategy.train(experience)
        return copy_of(model)

    assert differing(end_of([]), end_of([Passes()])) == set()


# ---- options -------------------------------------------------------------------------------------


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(UsageError, match=r"inflora.rank is 33; legal: at most .* 32"):
        InfLora(rank=33).attach(tiny_vit())


def test_the_published_options_know_their_benchmark():
    for benchmark, lamb in (("cifar100", 0.95), ("imagenet-r", 0.98)):
        options = InfLora.paper_options(benchmark)
        assert options == {"lr": 5e-4, "lamb": lamb}
        assert isinstance(InfLora(**options), Method)
