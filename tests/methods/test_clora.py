"""CLoRA: spaces that exist once, matrices of each projection's own, and the regulariser by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from methods import clora
from methods.base import trainable
from methods.clora import SADE, Clora, CloraPlug, Spaces, sade_of_modules
from methods.errors import UsageError
from methods.finetune import Finetune
from methods.vit import Plug, open_seams
from tests.conftest import deep_vit, synthetic, tiny_vit
from tests.methods.conftest import CLORA, Run, copy_of, learner, make, stream

SPACES = {"spaces.down", "spaces.up"}


def attached(model: Any = None, **options: Any) -> tuple[Any, Clora]:
    torch.manual_seed(0)
    model = model or tiny_vit()
    method = Finetune(adapter="clora", **options)
    method.attach(model)
    assert isinstance(method.adapter, Clora)
    return model, method.adapter


def randomise(adapter: Clora, scale: float = 1.0) -> None:
    """As if it had learnt: every Q is random."""
    torch.manual_seed(1)
    for mixer in adapter.mixers:
        nn.init.normal_(mixer, std=scale)


def change(spaces: Spaces, mixer: Tensor) -> Tensor:
    """The weight change (D, D), float64, by the paper's sum: x -> sum over h of x D_h Q_h U_h."""
    total = torch.zeros(spaces.down.shape[-1], spaces.down.shape[-1], dtype=torch.float64)
    for down, q, up in zip(spaces.down, mixer, spaces.up, strict=True):
        total += (down.double().T @ q.double() @ up.double()).T
    return total


# ---- the map -------------------------------------------------------------------------------------


def test_a_projection_by_hand():
    torch.manual_seed(0)
    spaces = Spaces(8, 2, 3).double()
    plug = CloraPlug(spaces, "qv").double()
    for mixer in plug.mixers.values():
        nn.init.normal_(mixer)
    x, q, k, v = torch.randn(4, 2, 5, 8, dtype=torch.float64).unbind()
    changed = plug.project(x, q, k, v)
    torch.testing.assert_close(changed[0], q + x @ change(spaces, plug.mixers["q"]).T, atol=1e-12, rtol=0)
    assert torch.equal(changed[1], k)
    torch.testing.assert_close(changed[2], v + x @ change(spaces, plug.mixers["v"]).T, atol=1e-12, rtol=0)


def test_the_rank_of_a_change_is_that_of_all_spaces_together():
    _, adapter = attached(spaces=4, clora_rank=4)
    randomise(adapter)
    for mixer in adapter.mixers:
        assert torch.linalg.matrix_rank(change(adapter.spaces, mixer)) == 16


def test_spaces_are_drawn_as_weights_of_linear_maps_each_by_itself():
    torch.manual_seed(0)
    spaces = Spaces(768, 8, 4)
    for part, fan_in in ((spaces.down, 768), (spaces.up, 8)):
        bound = fan_in**-0.5  # kaiming-uniform with a = sqrt(5)
        assert 0.99 * bound < part.detach().abs().amax((1, 2)).min()
        assert part.detach().abs().max() <= bound
        assert len({tuple(space.flatten()[:5].tolist()) for space in part}) == 4


# ---- sharing -------------------------------------------------------------------------------------


def spaces_seen(model: Any) -> set[int]:
    """Where the spaces lie that the model's own and all plugs compute with."""
    held = [model.spaces, *(attention.plug.spaces for attention in open_seams(model))]
    return {part.data_ptr() for spaces in held for part in (spaces.down, spaces.up)}


def test_all_blocks_share_the_spaces_by_reference_also_in_a_copy_and_in_a_restored_model(trained):
    run = trained(CLORA)
    restored = deep_vit()
    make(CLORA).restore(restored, run.method.state())
    moved = copy.deepcopy(run.model).to(torch.float64)
    for model in (run.model, copy.deepcopy(run.model), restored, moved):
        assert len(spaces_seen(model)) == 2
    assert spaces_seen(run.model).isdisjoint(spaces_seen(copy.deepcopy(run.model)))


def test_the_spaces_are_stored_and_counted_once():
    run = Run(CLORA, epochs=1, experiences=1)
    width, rank, spaces, modules = 32, 8, 4, 10
    expected = (2 * width * rank + modules * rank**2) * spaces
    for tensors in (run.method.state(), run.model.state_dict()):
        added = {n: t for n, t in tensors.items() if n.startswith("spaces.") or ".plug." in n}
        assert sum(tensor.numel() for tensor in added.values()) == expected
        assert {name for name in added if ".mixers." not in name} == SPACES
    (group,) = run.strategy.optimizer.param_groups
    head = sum(p.numel() for p in run.model.head.parameters())
    assert sum(p.numel() for p in group["params"]) == expected + head
    assert len({id(p) for p in group["params"]}) == len(group["params"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"spaces": 1}, 13_824),
        ({"spaces": 2}, 27_648),
        ({}, 55_296),
        ({"targets": "qkv"}, 58_368),
        ({"clora_rank": 10}, 71_040),
    ],
)
def test_the_number_of_parameters_of_a_vit_b(options, expected):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
        method = Finetune(adapter="clora", **options)
        method.attach(model)
    assert sum(p.numel() for p in trainable(model)) == expected
    assert sum(t.numel() for t in method.state().values()) == expected
    p, r = method.hyper.spaces, method.hyper.clora_rank
    assert expected == (2 * 768 * r + 12 * len(method.hyper.targets) * r * r) * p


def test_frozen_spaces_leave_the_matrices_to_train():
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
        method = Finetune(adapter="clora", spaces_after_first="freeze")
        method.attach(model)
        method._freeze(0)
    assert sum(p.numel() for p in trainable(model)) == 6_144


def test_the_parameters_of_lora_that_the_paper_compares_with():
    for targets, expected in (("kv", 294_912), ("qkv", 442_368)):
        with torch.device("meta"):
            model = timm.create_model("vit_base_patch16_224")
            Finetune(rank=8, targets=targets).attach(model)
        assert sum(p.numel() for p in trainable(model)) == expected


# ---- the start -----------------------------------------------------------------------------------


def test_before_the_first_step_the_model_is_the_frozen_one():
    images = synthetic(per_class=1)[0]
    model, _ = attached()
    changed = model.forward_features(images)
    for attention in open_seams(model):
        attention.plug = Plug()
    assert torch.equal(changed, model.forward_features(images))


class Steps(SupervisedPlugin):
    """The tensors before each step and after the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Tensor]] = []

    def before_update(self, strategy, *args, **kwargs):
        self.seen.append(copy_of(strategy.model))


@pytest.mark.parametrize("sade", [*SADE])
def test_after_two_steps_spaces_and_matrices_have_moved(sade):
    """Two, because the matrices are zero at the start; no zero is a fixed point of all of them."""
    torch.manual_seed(0)
    steps, method = Steps(), Finetune(adapter="clora", head_init="default", sade=sade)
    learner(tiny_vit(), method, [steps], epochs=1).train(stream().train_stream[0])
    first, _, third = steps.seen[:3]
    added = [name for name in first if name in SPACES or ".mixers." in name]
    assert len(added) == 6
    for name in added:
        moved = first[name] != third[name]
        assert moved.flatten(1).any(1).all()  # in each of the spaces


def test_spaces_train_on_or_are_frozen_after_the_first_experience():
    for after_first in ("train", "freeze"):
        run = Run(f"{CLORA}+spaces_after_first={after_first}", epochs=1)
        first, last = run.after[0], run.after[-1]
        for name in SPACES:
            assert not torch.equal(run.after[0][name], torch.zeros_like(run.after[0][name]))
            assert torch.equal(first[name], last[name]) == (after_first == "freeze")
        held = {id(p) for p in run.strategy.optimizer.param_groups[0]["params"]}
        assert (id(run.model.spaces.down) in held) == (after_first == "train")
        mixers = [name for name in first if ".mixers." in name]
        assert [name for name in mixers if torch.equal(first[name], last[name])] == []
        # Their gradient at the last step is not one of an earlier experience.
        assert (run.method.diagnostics()["gradient_spaces"] is None) == (after_first == "freeze")


def test_frozen_spaces_stay_frozen_in_a_restored_model():
    run = Run(f"{CLORA}+spaces_after_first=freeze", epochs=1, experiences=1)
    model = deep_vit()
    make(run.case).restore(model, run.method.state())
    assert not any(p.requires_grad for p in model.spaces.parameters())


# ---- the regulariser -----------------------------------------------------------------------------


def by_hand(form: str, spaces: Spaces, mixers: list[Tensor]) -> float:
    """SADE with its products of d x d matrices, pair by pair, in float64."""
    downs = [down.double().T for down in spaces.down.detach()]
    ups = [up.double() for up in spaces.up.detach()]
    p, total, terms = len(downs), 0.0, 0
    pairs = [(h, other) for h in range(p) for other in range(p) if h != other]
    if form == "base":
        for h, o in pairs:
            total += float((downs[h].T @ downs[o]).square().sum() + (ups[h] @ ups[o].T).square().sum())
        return total / len(pairs)
    for mixer in mixers if form == "module" else [torch.eye(spaces.down.shape[1]).expand(p, -1, -1)]:
        branches = [d @ q.double() @ u for d, q, u in zip(downs, mixer.detach(), ups, strict=True)]
        for h, o in pairs:
            total += float((branches[h].T @ branches[o]).square().sum())
            terms += 1
    return total / terms


def some_spaces(
    width: int = 16, rank: int = 3, spaces: int = 4, modules: int = 5
) -> tuple[Spaces, list[Tensor]]:
    torch.manual_seed(0)
    mixers = [nn.Parameter(torch.randn(spaces, rank, rank, dtype=torch.float64)) for _ in range(modules)]
    return Spaces(width, rank, spaces).double(), mixers


@pytest.mark.parametrize("form", [*SADE])
def test_the_regulariser_equals_its_naive_form(form):
    spaces, mixers = some_spaces()
    value = SADE[form](spaces, mixers)
    assert value.item() == pytest.approx(by_hand(form, spaces, mixers), rel=1e-12)


def test_the_three_forms_differ():
    spaces, mixers = some_spaces()
    assert len({round(SADE[form](spaces, mixers).item(), 9) for form in SADE}) == 3


@pytest.mark.parametrize("form", [*SADE])
def test_orthogonal_spaces_have_no_regulariser_and_it_gives_them_no_gradient(form):
    """So that it compares different spaces only: with itself a space would make it a weight decay."""
    spaces, mixers = some_spaces()
    basis = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    with torch.no_grad():
        spaces.down.copy_(5 * basis[:12].reshape(4, 3, 16))
        spaces.up.copy_(5 * basis[4:].reshape(4, 3, 16))
    value = SADE[form](spaces, mixers)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-20)
    for parameter in (spaces.down, spaces.up, *mixers):
        assert parameter.grad is None or parameter.grad.abs().max() < 1e-9


@pytest.mark.parametrize("form", [*SADE])
def test_a_single_pair_of_spaces_has_no_regulariser(form):
    _, adapter = attached(spaces=1, sade=form)
    assert adapter.penalty() is None
    assert adapter.diagnostics()["sade"] is None


def test_at_the_start_the_regulariser_of_modules_is_zero_and_that_of_spaces_is_not():
    values = {form: attached(sade=form)[1].sade().item() for form in SADE}
    assert values["module"] == 0
    assert min(values["shared"], values["base"]) > 0


def test_no_matrix_of_the_regulariser_is_as_large_as_a_weight():
    """At the width of a ViT-B: the largest that it computes holds a pair of spaces for each pair."""
    spaces, rank, modules = 4, 8, 24
    largest = spaces * (spaces - 1) // 2 * rank * 768
    assert largest < 768**2 // 10

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in [result] if isinstance(t, Tensor))
            return result

    for form in SADE:
        sizes: list[int] = []
        parts = some_spaces(768, rank, spaces, modules)
        with Watch():
            SADE[form](*parts)
        assert sizes
        assert max(sizes) <= largest


# ---- the regulariser in training -----------------------------------------------------------------


class Losses(SupervisedPlugin):
    """The loss of a step from random matrices Q on: before the method adds to it, after, and the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: list[float] = []
        self.whole: list[float] = []
        self.added: list[float] = []
        self.evaluated: list[tuple[float, float]] = []

    def before_training_exp(self, strategy, *args, **kwargs):
        randomise(strategy.plugins[0].adapter)

    def after_forward(self, strategy, *args, **kwargs):
        self.plain.append(strategy._criterion(strategy.mb_output, strategy.mb_y).item())

    def after_backward(self, strategy, *args, **kwargs):
        adapter = strategy.plugins[0].adapter
        self.whole.append(strategy.loss.item())
        self.added.append(adapter.hyper.sade_weight * by_hand("module", adapter.spaces, adapter.mixers))

    def after_eval_iteration(self, strategy, *args, **kwargs):
        plain = strategy._criterion(strategy.mb_output, strategy.mb_y).item()
        self.evaluated.append((strategy.loss.item(), plain))


def test_the_regulariser_is_in_the_training_loss_with_its_weight_and_not_in_an_evaluation():
    torch.manual_seed(0)
    losses, benchmark = Losses(), stream()
    strategy = learner(tiny_vit(), Finetune(adapter="clora", sade_weight=0.5), [losses], epochs=1)
    strategy.train(benchmark.train_stream[0])
    strategy.eval([benchmark.test_stream[0]])
    assert min(losses.added) > 0.01
    for plain, added, whole in zip(losses.plain, losses.added, losses.whole, strict=True):
        assert whole == pytest.approx(plain + added, rel=1e-5)
    assert losses.evaluated
    assert all(loss == plain for loss, plain in losses.evaluated)


def test_without_a_weight_training_is_that_without_a_regulariser(monkeypatch):
    def learnt(weight: float) -> dict[str, Tensor]:
        return Run(f"finetune:adapter=clora+sade_weight={weight}", epochs=2, experiences=1).after[0]

    none, some = learnt(0.0), learnt(0.01)
    monkeypatch.setattr(Clora, "penalty", lambda self: None)
    without = learnt(0.01)
    assert all(torch.equal(none[name], without[name]) for name in none)
    assert not torch.equal(some["spaces.down"], without["spaces.down"])


def test_gradient_norms_are_those_of_the_last_step():
    class Last(SupervisedPlugin):
        def after_backward(self, strategy, *args, **kwargs):
            named = strategy.model.named_parameters()
            self.squares = {n: p.grad.double().square().sum() for n, p in named if p.grad is not None}

    torch.manual_seed(0)
    last, method = Last(), Finetune(adapter="clora")
    learner(tiny_vit(), method, [last], epochs=1).train(stream().train_stream[0])
    diagnostics = method.diagnostics()
    for name, part in (("gradient_spaces", "spaces."), ("gradient_mixers", ".mixers.")):
        expected = sum(s for n, s in last.squares.items() if part in n) ** 0.5
        assert expected > 0
        assert diagnostics[name] == pytest.approx(expected.item(), rel=1e-5)
    sade = sade_of_modules(method.adapter.spaces, method.adapter.mixers).item()
    assert diagnostics["sade"] == pytest.approx(sade)
    assert set(diagnostics) <= set(Finetune.diagnostic_help)


# ---- merging and options -------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["q", "k", "v", "qkv"])
def test_merging_adds_all_branches_of_each_projection_with_its_own_matrices(targets):
    images = synthetic(per_class=2)[0]
    model, adapter = attached(targets=targets)
    randomise(adapter)
    plain = model.blocks[0].attn.qkv.weight.clone().double()
    own = dict(model.blocks[0].attn.plug.mixers)
    with torch.no_grad():
        expected = model.forward_features(images)
        changes = [change(adapter.spaces, own[t]) if t in own else torch.zeros(32, 32) for t in "qkv"]
        adapter.merge(model)
        torch.testing.assert_close(model.forward_features(images), expected, atol=1e-5, rtol=1e-5)
        merged = model.blocks[0].attn.qkv.weight.double()
    torch.testing.assert_close(merged, plain + torch.cat(changes), atol=1e-6, rtol=0)
    assert set(model.state_dict()) - {"head.weight", "head.bias"} <= set(tiny_vit().state_dict())
    assert all(attention.plug is None for attention in open_seams(model))


def test_more_directions_than_the_width_has_are_refused():
    with pytest.raises(UsageError, match=r"finetune.clora_rank is 9 and finetune.spaces is 4; .* 32"):
        Finetune(adapter="clora", clora_rank=9).attach(tiny_vit())


def test_the_module_names_what_it_is_not():
    assert all(number in (clora.__doc__ or "") for number in ("2512.24603", "2502.17920", "2304.06027"))
