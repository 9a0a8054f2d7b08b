"""C-LoRA: what is computed, what learns, what the penalty adds, and what an experience leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from methods.base import trainable
from methods.c_lora import KINDS, CLora, CLoraHyper, Routed, RoutedPlug, anchors, penalties
from methods.errors import UsageError
from methods.registry import METHODS
from methods.vit import open_seams
from tests.conftest import synthetic, tiny_vit
from tests.methods import by_hand
from tests.methods.conftest import Run, copy_of, make

BLOCKS, WIDTH, RANK = 2, 32, 10
EXPERIENCES = range(3)
NAMES = [f"blocks.{i}.attn.plug.maps.{target}" for i in range(BLOCKS) for target in "kv"]
KIND_NAMES = list(KINDS)
PENALTY_NAMES = ["route", "basis", "output"]

CASES: dict[str, dict[str, Any]] = {
    "merged": {"penalty_weight": 1.0},
    "live": {"old_path": "live", "penalty": "output", "penalty_weight": 1.0},
    "full": {"old_path": "full", "penalty": "basis", "penalty_weight": 1.0},
    "frozen": {"factors": "frozen"},
    "frozen full": {"factors": "frozen", "old_path": "full"},
}


@dataclass(frozen=True)
class Look:
    """The model's tensors at one moment, what learns, and its logits for images that no one trains on."""

    tensors: dict[str, Tensor]
    learning: set[str]
    logits: Tensor

    def part(self, name: str, part: str) -> Tensor:
        """A (up), B (down), R_delta (route) or R_old (old_route) of a map, float64."""
        return self.tensors[f"{name}.{part}"].double()

    def weight(self, name: str) -> Tensor:
        """The rows (D, D), float64, of the projection that a map adapts."""
        block, target = name.partition(".attn")[0], name[-1]
        return self.tensors[f"{block}.attn.qkv.weight"].double().chunk(3)["qkv".index(target)]

    def old_path(self, name: str) -> Tensor:
        return self.part(name, "up") @ self.part(name, "old_route") @ self.part(name, "down")


def look(strategy: Any) -> Look:
    model = strategy.model
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(synthetic(per_class=3, seed=1)[0])
    model.train(training)
    return Look(copy_of(model), {n for n, p in model.named_parameters() if p.requires_grad}, logits)


class Witness(SupervisedPlugin):
    """Looks at every experience as it begins, after its first steps, once trained, and when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Look] = []
        self.steps: list[list[Look]] = []
        self.trained: list[Look] = []
        self.over: list[Look] = []
        self.states: list[dict[str, Tensor]] = []
        self.optimiser_states: list[int] = []
        self.added: list[list[tuple[float, Look]]] = []
        self.diagnostics: list[dict[str, Any]] = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.begun.append(look(strategy))
        self.optimiser_states.append(len(strategy.optimizer.state))
        self.steps.append([])
        self.added.append([])

    def before_backward(self, strategy, *args, **kwargs):
        alone = torch.nn.functional.cross_entropy(strategy.mb_output, strategy.mb_y)
        self.added[-1].append(((strategy.loss - alone).item(), look(strategy)))

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.steps[-1].append(look(strategy))

    def after_training_epoch(self, strategy, *args, **kwargs):
        self.trained[len(self.over) :] = [look(strategy)]

    def after_training_exp(self, strategy, *args, **kwargs):
        self.over.append(look(strategy))
        self.states.append(strategy.plugins[0].state())
        self.diagnostics.append(dict(strategy.plugins[0].diagnostics()))


def learn(epochs: int = 3, **options: Any) -> SimpleNamespace:
    witness = Witness()
    run = Run("c-lora", epochs=epochs, plugins=[witness], vit=tiny_vit, **options)
    return SimpleNamespace(run=run, witness=witness, hyper=run.method.hyper)


@pytest.fixture(scope="module", params=list(CASES))
def learnt(request) -> SimpleNamespace:
    return learn(**CASES[request.param])


@pytest.fixture(scope="module")
def seen(learnt) -> Witness:
    return learnt.witness


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    return {n for n in first.keys() | second.keys() if not torch.equal(first[n], second[n])}


def filled(kind: str, width: int = 6, rank: int = 3) -> Routed:
    """A map in float64 with random values everywhere."""
    each = KINDS[kind](width, rank).double()
    rng = torch.Generator().manual_seed(0)
    for tensor in each.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=torch.float64))
    return each


# ---- one map, by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_map_by_hand(kind):
    each, x = filled(kind), torch.randn(5, 6, dtype=torch.float64)
    route = each.route if kind == "merged" else each.old_route + each.route
    torch.testing.assert_close(each(x), x @ (each.up @ route @ each.down).T)
    torch.testing.assert_close(each.unmerged(), route.detach())


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_gradients_by_hand(kind):
    """Only R_delta enters those of A and B, unless the old path is trained with the rest."""
    each, x = filled(kind), torch.randn(5, 6, dtype=torch.float64)
    given = torch.randn(5, 6, dtype=torch.float64)
    (each(x) * given).sum().backward()
    g, a, b = given.T @ x, each.up.detach(), each.down.detach()
    route = (each.route + each.old_route if kind == "full" else each.route).detach()
    torch.testing.assert_close(each.up.grad, g @ b.T @ route.T)
    torch.testing.assert_close(each.route.grad, a.T @ g @ b.T)
    torch.testing.assert_close(each.down.grad, route.T @ a.T @ g)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_gradient_of_a_layers_input_is_that_of_its_values(kind):
    """By central differences: lower layers learn from the old path, too."""
    attention = open_seams(tiny_vit().double())[0]
    attention.plug = RoutedPlug(KINDS[kind], WIDTH, 3, "kv").double()
    for each in attention.plug.maps.values():
        each.load_state_dict(filled(kind, WIDTH).state_dict())
    rng = torch.Generator().manual_seed(1)
    x, given = (torch.randn(1, 3, WIDTH, generator=rng, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    (attention(x) * given).sum().backward()
    moved = torch.zeros_like(x)
    with torch.no_grad():
        for place in range(x.numel()):
            step = torch.zeros(x.numel(), dtype=torch.float64)
            step[place] = 1e-5
            ahead, behind = (attention(x + sign * step.view_as(x)) for sign in (1, -1))
            moved.view(-1)[place] = ((ahead - behind) * given).sum() / 2e-5
    torch.testing.assert_close(x.grad, moved, rtol=1e-5, atol=1e-6)


def test_both_factors_start_as_in_lora_and_the_map_at_zero():
    """Kaiming-uniform with a = sqrt(5) is uniform within 1/sqrt(fan-in)."""
    torch.manual_seed(0)
    each = Routed(width=400, rank=25)
    for factor, bound in ((each.up, 1 / 5), (each.down, 1 / 20)):
        assert 0.99 * bound < factor.abs().max() <= bound
        assert factor.mean().abs() < 0.02 * bound
    assert not each.route.any()
    assert not each.old_route.any()


def test_a_map_costs_two_thin_products_and_a_small_one():
    each, tokens = Routed(WIDTH, RANK), 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        each(torch.zeros(1, tokens, WIDTH))
    assert counter.get_total_flops() == 2 * tokens * (2 * WIDTH * RANK + RANK**2)


# ---- the penalty, by hand ------------------------------------------------------------------------


def penalty_of(kind: str, old: Tensor, new: Tensor) -> Tensor:
    each = filled("merged", width=6, rank=len(old))
    each.old_route.copy_(old)
    each.route.data.copy_(new)
    (value,) = penalties(kind, anchors(kind, old[None]), [each])
    return value


def test_the_penalty_of_routes_by_hand():
    both = torch.eye(2, dtype=torch.float64)
    one, other = (row.diag() for row in both)
    assert penalty_of("route", one, other) == 0
    assert penalty_of("route", one, one) == 1
    assert penalty_of("route", both, both) == 2
    old, new = torch.randn(2, 4, 4, dtype=torch.float64)
    entries = [sum(old[k, i] * new[k, j] for k in range(4)) ** 2 for i in range(4) for j in range(4)]
    torch.testing.assert_close(penalty_of("route", old, new), sum(entries))


def test_the_penalty_of_a_basis_takes_the_directions_that_hold_most_and_not_their_scale():
    """Energies 9, 0.7 and 0.3 of 10: the first holds 90 %, two hold 97 %."""
    rng = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))[0] for _ in range(2)
    )
    old = left @ torch.tensor([9.0, 0.7, 0.3], dtype=torch.float64).sqrt().diag() @ right.T
    new = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    expected = (left[:, :2].T @ new).square().sum()
    torch.testing.assert_close(penalty_of("basis", old, new), expected)
    torch.testing.assert_close(penalty_of("basis", 7 * old, new), expected)


def test_the_penalty_of_outputs_by_hand():
    """Of the whole D x r products, and without a gradient to A."""
    rng = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 3, 3, generator=rng, dtype=torch.float64)
    each = filled("merged")
    each.old_route.copy_(old)
    each.route.data.copy_(new)
    (value,) = penalties("output", anchors("output", old[None]), [each])
    a = each.up.detach()
    torch.testing.assert_close(value.detach(), ((a @ old).T @ (a @ new)).square().sum())
    value.backward()
    assert each.up.grad is None
    torch.testing.assert_close(each.route.grad, 2 * (a.T @ a @ old) @ (a @ old).T @ a @ new)


@pytest.mark.parametrize("kind", PENALTY_NAMES)
def test_without_an_old_path_penalty_and_gradient_are_zero(kind):
    each = filled("merged")
    (value,) = penalties(kind, anchors(kind, torch.zeros(1, 3, 3, dtype=torch.float64)), [each])
    value.backward()
    assert value == 0
    assert not each.route.grad.any()


# ---- what is learnt, and what is not -------------------------------------------------------------


def penalty_by_hand(hyper: CLoraHyper, at: Look, name: str) -> float:
    old, new, up = (at.part(name, part) for part in ("old_route", "route", "up"))
    if hyper.penalty == "route":
        return (old.T @ new).square().sum().item()
    if hyper.penalty == "output":
        return ((up @ old).T @ (up @ new)).square().sum().item()
    left, values, _ = torch.linalg.svd(old)
    shares = values.square().cumsum(0) / values.square().sum().clamp(min=1e-30)
    columns = int((shares < 0.95).sum()) + 1 if old.any() else 0
    return (left[:, :columns].T @ new).square().sum().item()


def test_the_loss_is_the_cross_entropy_plus_the_weighted_penalty_of_all_projections(learnt):
    hyper = learnt.hyper
    for task, steps in enumerate(learnt.witness.added):
        for added, at in steps:
            expected = hyper.penalty_weight * sum(penalty_by_hand(hyper, at, name) for name in NAMES)
            assert added == pytest.approx(expected, rel=1e-4, abs=1e-6)
            assert task or added == 0
        assert max(added for added, _ in steps) > 1e-6 or not task


def test_an_experience_changes_what_learns_and_nothing_else(learnt):
    """The weight that holds the old path, R_old, and the heads of other experiences stay bit for bit."""
    for task in EXPERIENCES:
        begun, trained = learnt.witness.begun[task], learnt.witness.trained[task]
        routes = {f"{name}.route" for name in NAMES}
        factors = {f"{name}.{part}" for name in NAMES for part in ("up", "down")}
        moving = set() if learnt.hyper.factors == "frozen" and task else factors
        head = {f"head.tasks.{task}.weight", f"head.tasks.{task}.bias"}
        assert begun.learning == routes | moving | head
        assert differing(begun.tensors, trained.tensors) == begun.learning


def test_every_experience_starts_with_a_route_at_zero_and_an_optimiser_without_memory(seen):
    assert seen.optimiser_states == [0, 0, 0]
    for begun in seen.begun:
        assert not any(begun.part(name, "route").any() for name in NAMES)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_route_learns_at_the_first_step_and_the_factors_at_the_second(kind):
    """Where the head is not zero; a head at zero takes one step more, because it gives no gradient."""
    witness = learn(old_path=kind, head_init="default", epochs=1, experiences=1).witness
    (begun,), (first, second, *_) = witness.begun, witness.steps[0]
    for name in NAMES:
        assert not torch.equal(begun.part(name, "route"), first.part(name, "route"))
        for part in ("up", "down"):
            assert torch.equal(begun.part(name, part), first.part(name, part))
            assert not torch.equal(first.part(name, part), second.part(name, part))


def test_a_heavier_penalty_leaves_less_along_the_old_routes():
    ends = [learn(penalty_weight=weight).witness.diagnostics[1] for weight in (0.0, 100.0)]
    for light, heavy in zip(*(values["penalty"] for values in ends), strict=True):
        assert heavy < 0.5 * light


# ---- what an experience leaves behind --------------------------------------------------------------


def test_an_experience_is_added_to_the_old_path(learnt):
    for trained, over in zip(learnt.witness.trained, learnt.witness.over, strict=True):
        for name in NAMES:
            up, route, down = (trained.part(name, part) for part in ("up", "route", "down"))
            assert route.norm() > 1e-3
            torch.testing.assert_close(
                over.part(name, "old_route"), trained.part(name, "old_route") + route, atol=1e-7, rtol=1e-6
            )
            assert not over.part(name, "route").any()
            change = up @ route @ down if learnt.hyper.old_path == "merged" else 0 * trained.weight(name)
            torch.testing.assert_close(over.weight(name), trained.weight(name) + change, atol=1e-7, rtol=1e-6)


def test_consolidation_changes_no_logit(seen):
    for trained, over in zip(seen.trained, seen.over, strict=True):
        torch.testing.assert_close(over.logits, trained.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", EXPERIENCES)
def test_nor_do_a_restored_state_and_a_merge(learnt, task):
    model, method = tiny_vit(), make("c-lora", **vars(learnt.hyper))
    method.restore(model, learnt.witness.states[task])
    model.eval()
    images, over = synthetic(per_class=3, seed=1)[0], learnt.witness.over[task]
    with torch.no_grad():
        assert torch.equal(model(images), over.logits)
        assert method.merge(model)
        torch.testing.assert_close(model(images), over.logits, atol=1e-5, rtol=1e-5)
    assert all(attention.plug is None for attention in open_seams(model))


def test_the_whole_pass_by_hand(learnt):
    """A plain ViT in float64 with W + sum_t A_t R_t B_t, or W + A R B with the last A, R and B."""
    plain, witness = tiny_vit().double(), learnt.witness
    for name in NAMES:
        if learnt.hyper.old_path == "merged":
            ends = (
                (at.part(name, "up"), at.part(name, "route"), at.part(name, "down")) for at in witness.trained
            )
            change = sum(up @ route @ down for up, route, down in ends)
        else:
            change = witness.over[-1].old_path(name)
        block, target = int(name.split(".")[1]), name[-1]
        plain.blocks[block].attn.qkv.weight.data.chunk(3)["qkv".index(target)].add_(change)
    read = by_hand.features(plain, synthetic(per_class=3, seed=1)[0], {})
    expected = by_hand.logits(learnt.run.model.head, read)
    torch.testing.assert_close(witness.over[-1].logits.double(), expected, atol=1e-4, rtol=1e-4)


def test_diagnostics_by_hand(learnt):
    hyper, witness = learnt.hyper, learnt.witness
    for task, values in enumerate(witness.diagnostics):
        assert set(values) == set(CLora.diagnostic_help)
        begun, trained = witness.begun[task], witness.trained[task]
        for i in range(BLOCKS):
            names = NAMES[2 * i : 2 * i + 2]
            norm = sum(trained.part(name, "route").square().sum() for name in names).sqrt()
            assert values["route_norm"][i] == pytest.approx(norm.item(), rel=1e-5)
            penalty = sum(penalty_by_hand(hyper, trained, name) for name in names)
            assert values["penalty"][i] == pytest.approx(penalty, rel=1e-4, abs=1e-9)
            if task:
                moved, before = torch.zeros(2, dtype=torch.float64)
                for name in names:
                    moved += (trained.old_path(name) - begun.old_path(name)).square().sum()
                    before += begun.old_path(name).square().sum()
                drift = 0 if hyper.old_path == "merged" else (moved / before).sqrt().item()
                assert values["old_path_drift"][i] == pytest.approx(drift, rel=1e-6)
                assert (values["old_path_drift"][i] > 0) == (
                    hyper.old_path in ("live", "full") and hyper.factors == "train"
                )
        assert (values["old_path_drift"] is None) == (task == 0)


def test_with_frozen_factors_one_map_computes_what_merging_computes():
    """All that is different is rounding, so the variant that stores less is not another method."""
    one, merged = (learn(factors="frozen", old_path=path).witness.over for path in ("full", "merged"))
    for first, second in zip(one, merged, strict=True):
        torch.testing.assert_close(first.logits, second.logits, atol=1e-3, rtol=1e-3)


def test_classes_that_come_again_have_an_old_path():
    """The second experience has the classes of the first, and no new head."""
    witness = Witness()
    run = Run("c-lora", epochs=2, plugins=[witness], vit=tiny_vit, experiences=1)
    run.learn(0)
    first, second = witness.diagnostics
    assert first["old_path_drift"] is None
    assert second["old_path_drift"] == [0.0, 0.0]
    assert all(value > 0 for value in second["penalty"])
    assert len(run.model.head.heads) == 1
    torch.testing.assert_close(witness.over[1].logits, witness.trained[1].logits, atol=1e-5, rtol=1e-5)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "factors", "routes"), [(10, 368_640, 2_400), (64, 2_359_296, 98_304)])
def test_sizes_on_a_vit_b_16(rank, factors, routes):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
        CLora(rank=rank).attach(model)
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(n for name, n in sizes.items() if name.endswith(".route")) == routes
    assert sum(sizes.values()) - routes == factors
    assert sum(p.numel() for p in trainable(model)) == factors + routes


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_state_of_one_map_does_not_grow_and_that_of_merged_ones_has_the_weights(kind):
    states = learn(old_path=kind).witness.states
    sizes = [sum(t.numel() for n, t in state.items() if not n.startswith("head.")) for state in states]
    maps = len(NAMES) * 2 * (WIDTH * RANK + RANK**2)
    assert sizes == 3 * [maps + (BLOCKS * 3 * WIDTH**2 if kind == "merged" else 0)]


# ---- options -------------------------------------------------------------------------------------


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(UsageError, match=r"c-lora.rank is 33; legal: at most .* 32"):
        CLora(rank=33).attach(tiny_vit())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factors": "frozen", "old_path": "live"}, r"c-lora.old_path=live .* set c-lora.old_path=full"),
        ({"penalty": "basis", "penalty_weight": 0}, r"penalty is basis, but c-lora.penalty_weight=0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        CLora.check(CLoraHyper(**options), 3)
    for name in options:
        CLora.check(CLoraHyper(**{n: value for n, value in options.items() if n != name}), 3)


@pytest.mark.parametrize("case", list(CASES))
def test_caveats_say_what_is_inferred_and_which_method_it_is(case):
    hyper = CLoraHyper(**CASES[case])
    caveats = CLora.caveats(hyper)
    assert all("2502.17920" in caveat for caveat in caveats)
    inferred, collision, *live = caveats
    assert all(
        value in inferred for value in (hyper.penalty, hyper.old_path, hyper.factors, "optimiser", "rank")
    )
    assert "Smith et al., arXiv 2304.06027" in collision
    assert ["not a descent direction" in caveat for caveat in live] == [True] * (hyper.old_path == "live")


def test_the_list_of_methods_says_which_paper_it_is():
    assert "2502.17920" in METHODS["c-lora"].summary


def test_no_recipe_is_made_up():
    for benchmark in ("cifar100", "imagenet-r"):
        assert CLora.paper(benchmark) == CLora.paper_options(benchmark) == {}
