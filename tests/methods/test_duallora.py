"""DualLoRA: what its subspaces, gates, task posterior and state promise, and the forward pass by hand."""

from __future__ import annotations

import functools
import math
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.plugins import SupervisedPlugin
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods import duallora_modules
from methods.duallora import DualLora
from methods.duallora_modules import DualPlug, features
from methods.errors import UsageError
from methods.head import ClassHead
from methods.lora import LowRank
from methods.vit import embed
from tests.conftest import tiny_vit
from tests.methods.conftest import ORDER, Run, copy_of, learner, stream

WIDTH, BLOCKS, EXPERIENCES, RANK = 32, 2, 3, 3
GATES = ["none", "relevance", "posterior"]
CALIBRATIONS = ["none", "softmax", "hard", "stick"]
FEATURES = ["cls_attn", "cls_in", "all_tokens"]
# Room in the subspaces, and a learning rate at which two epochs change the features.
SMALL: dict[str, Any] = {
    **{"rank": RANK, "lr": 2e-2, "lamb": 0.8, "lame": 0.9, "capacity": 1.0, "experience_capacity": 1.0},
    **{"bases": "own", "gate": "relevance", "score_depth": 1.0},
}


def lively_vit(**changes: Any) -> VisionTransformer:
    """The tiny ViT with weights in its attention that make it far from uniform."""
    model = tiny_vit(**changes)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(8)
    return model


class Unmerged(SupervisedPlugin):
    """Keeps the model as it is at the end of training, before its adapters are merged or put away."""

    def after_training_epoch(self, strategy, *args, **kwargs):
        self.model = deepcopy(strategy.model).eval()
        self.optimised = sum(p.numel() for group in strategy.optimizer.param_groups for p in group["params"])


@dataclass
class Learnt:
    """A run over three experiences; the lists have an entry for each of them."""

    method: DualLora
    model: VisionTransformer
    strategy: Any
    benchmark: Any
    unmerged: list[VisionTransformer] = field(default_factory=list)
    optimised: list[int] = field(default_factory=list)
    after: list[dict[str, Tensor]] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    rng: list[Tensor] = field(default_factory=list)
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # of the first experience's images

    def images(self, i: int) -> Tensor:
        """All training images of experience i, (n, 3, S, S)."""
        return torch.stack([x for x, *_ in self.benchmark.train_stream[i].dataset])

    def labels(self, i: int) -> Tensor:
        return torch.tensor([y for _, y, *_ in self.benchmark.train_stream[i].dataset])


def learn(*plugins: Any, **options: Any) -> Learnt:
    """Train on the whole stream; `options` are changes to SMALL."""
    model, probe = lively_vit(), Unmerged()
    torch.manual_seed(0)
    method = DualLora(**{**SMALL, **options})
    learnt = Learnt(method, model, learner(model, method, [probe, *plugins], epochs=2), stream())
    for experience in learnt.benchmark.train_stream:
        learnt.strategy.train(experience)
        learnt.unmerged.append(probe.model)
        learnt.optimised.append(probe.optimised)
        learnt.after.append(copy_of(model))
        learnt.states.append(method.state())
        learnt.rng.append(torch.get_rng_state())
        learnt.diagnostics.append(method.diagnostics())
        with torch.no_grad():
            learnt.logits.append(model.eval()(learnt.images(0)))
    return learnt


trained_once = functools.cache(learn)


def learnt_with(**options: Any) -> Learnt:
    """As `learn`, but trained once for all tests, which only look."""
    defaults = DualLora(**SMALL).hyper
    return trained_once(
        **{name: value for name, value in options.items() if getattr(defaults, name) != value}
    )


def restored(state: dict[str, Tensor], **options: Any) -> tuple[DualLora, VisionTransformer]:
    """A fresh model that carries `state`."""
    method, model = DualLora(**{**SMALL, **options}), lively_vit()
    method.restore(model, state)
    return method, model.eval()


def state_of(gate: str, **options: Any) -> dict[str, Tensor]:
    """A trained state; what is gated at all is trained alike, so the gate's formula can be exchanged."""
    return learnt_with(gate="none" if gate == "none" else "relevance", **options).states[-1]


def by_block(parts: dict[int, Tensor]) -> Tensor:
    """What blocks left in the context of a pass, (L, B, t)."""
    return torch.stack([parts[block] for block in sorted(parts)])


def plugs_of(model: VisionTransformer) -> list[DualPlug]:
    return [block.attn.plug for block in model.blocks]


def row_blocks(weight: Tensor) -> dict[str, Tensor]:
    return dict(zip("qkv", weight.chunk(3), strict=True))


def weight_of(state: dict[str, Tensor], block: int, target: str) -> Tensor:
    return row_blocks(state[f"blocks.{block}.attn.qkv.weight"])[target]


def plug_state(state: dict[str, Tensor], block: int, name: str) -> Tensor:
    return state[f"blocks.{block}.attn.plug.{name}"].double()


def bases(state: dict[str, Tensor], block: int) -> list[Tensor]:
    """S_1, ..., S_t, each (D, k_i)."""
    basis, member = plug_state(state, block, "basis"), plug_state(state, block, "basis_owner")
    return [basis[:, column > 0] for column in member.T]


def outside(rows: Tensor, basis: Tensor) -> float:
    """Share of the norm of rows (r, D) that lies outside the span of the orthonormal basis (D, k)."""
    rows, basis = rows.double(), basis.double()
    return (rows - rows @ basis @ basis.T).norm().item() / rows.norm().item()


def inside(rows: Tensor, basis: Tensor) -> float:
    """Share of the norm of rows (r, D) that lies inside the span of the orthonormal basis (D, k)."""
    return (rows.double() @ basis.double()).norm().item() / rows.double().norm().item()


@pytest.fixture
def images(labelled) -> Tensor:
    return labelled[0][:12]


# ---- subspaces -----------------------------------------------------------------------------------

every_block = pytest.mark.parametrize("block", range(BLOCKS))


@every_block
@pytest.mark.parametrize(
    "options",
    [{}, {"bases": "old"}, {"feature": "all_tokens"}, {"energy": "sigma4"}, {"capacity": 0.1}],
    ids=str,
)
def test_bases_are_orthonormal_grow_and_belong_to_one_experience_each(options, block):
    learnt, before = learnt_with(**options), 0
    for t, state in enumerate(learnt.after, start=1):
        basis, member = plug_state(state, block, "basis"), plug_state(state, block, "basis_owner")
        size = basis.shape[1]
        assert (basis.T @ basis - torch.eye(size)).abs().max() < 1e-6
        assert torch.equal(member.sum(1), torch.ones(size, dtype=torch.float64))
        parts = bases(state, block)
        assert len(parts) == t
        assert all(part.shape[1] >= RANK for part in parts)
        assert all((parts[i].T @ parts[j]).abs().max() < 1e-6 for i in range(t) for j in range(i))
        assert before < size <= WIDTH
        assert learnt.diagnostics[t - 1]["subspace_size"][block] == size
        assert learnt.diagnostics[t - 1]["bases_added"][block] == size - before == parts[-1].shape[1]
        before = size


@every_block
@pytest.mark.parametrize("options", [{}, {"exclude_own": True}, {"targets": "qkv"}], ids=str)
def test_trained_adapters_lie_in_their_subspaces_with_adam(options, block):
    learnt = learnt_with(**options)
    for t, model in enumerate(learnt.unmerged):
        plug = plugs_of(model)[block]
        assert list(plug.orthogonal) == list(plug.residual) == list(options.get("targets", "v"))
        for adapter in plug.orthogonal.values():
            assert adapter.up.abs().max() > 1e-3
            assert inside(adapter.down, plug.basis) < 1e-6
            avoided = inside(adapter.down, plug.own)
            assert avoided < 1e-6 if options.get("exclude_own") else avoided > 1e-3
        for adapter in plug.residual.values():
            assert adapter.up.abs().max() > 1e-3
            assert outside(adapter.down, plug.own) < 1e-6
            assert outside(adapter.down, bases(learnt.after[t], block)[t]) < 1e-6


def test_projected_gradients_would_leave_the_subspace_with_adam():
    """The control of the test above: why the subspaces are built in, not projected to."""
    torch.manual_seed(0)
    low_rank, basis = LowRank(WIDTH, RANK), torch.linalg.qr(torch.randn(WIDTH, 8)).Q
    with torch.no_grad():
        low_rank.down -= low_rank.down @ basis @ basis.T
    low_rank.down.register_hook(lambda gradient: gradient - gradient @ basis @ basis.T)
    optimiser, x, y = (
        torch.optim.Adam(low_rank.parameters(), 2e-2),
        torch.randn(64, WIDTH),
        torch.randn(64, WIDTH),
    )
    for _ in range(8):
        optimiser.zero_grad()
        F.mse_loss(low_rank(x), y).backward()
        optimiser.step()
    assert inside(low_rank.down, basis) > 1e-2


@every_block
def test_an_experience_is_out_of_reach_of_later_orthogonal_updates(block):
    """For stored class-token features of the first experience, block by block."""
    learnt = learnt_with()
    method, model = restored(learnt.states[0])
    seen: list[Tensor] = []
    method.context.collect = lambda i, rows: seen.append(rows.flatten(0, 1)) if i == block else None
    with torch.no_grad():
        model(learnt.images(0))
    rows, psi = torch.cat(seen).double(), plug_state(learnt.after[0], block, "basis")
    within = rows @ psi @ psi.T
    share = within.square().sum() / rows.square().sum()
    assert share > 0.75
    first = weight_of(learnt.after[0], block, "v").double()
    for later in learnt.after[1:]:
        change = weight_of(later, block, "v").double() - first
        largest = torch.linalg.matrix_norm(change, 2)
        assert largest > 1e-2
        assert (within @ change.T).norm() / (largest * within.norm()) < 1e-6
        assert (rows @ change.T).norm() / (largest * rows.norm()) <= (1 - share).sqrt()


#: What a block keeps of finished experiences, and the dimension along which it is stacked.
KEPT = [("mean_evidence", 0), ("gate_threshold", 0), ("banks.v.down", 0), ("banks.v.up", 1)]


@every_block
@pytest.mark.parametrize("gate", ["relevance", "posterior"])
def test_what_an_experience_leaves_behind_never_changes(gate, block):
    after = learnt_with(gate=gate).after
    for i, then in enumerate(after):
        for later in after[i + 1 :]:
            for name, dimension in KEPT:
                old, new = plug_state(then, block, name), plug_state(later, block, name)
                count = (i + 1) * (RANK if "banks" in name else 1)
                assert old.shape[dimension] == count
                assert torch.equal(new.narrow(dimension, 0, count), old)
            old_bases = plug_state(then, block, "basis")
            assert torch.equal(plug_state(later, block, "basis")[:, : old_bases.shape[1]], old_bases)
            for old_part, new_part in zip(bases(then, block), bases(later, block), strict=False):
                assert torch.equal(old_part, new_part)


@every_block
def test_merging_changes_only_the_adapted_rows_outside_the_earlier_bases(block):
    learnt = learnt_with()
    before = copy_of(lively_vit())
    for t, state in enumerate(learnt.after):
        change = weight_of(state, block, "v").double() - weight_of(before, block, "v").double()
        assert change.norm() > 1e-2
        assert all((change @ part).norm() < 1e-5 for part in bases(state, block)[:t])
        assert torch.equal(weight_of(state, block, "q"), weight_of(before, block, "q"))
        assert torch.equal(weight_of(state, block, "k"), weight_of(before, block, "k"))
        before = state


@pytest.mark.parametrize("where", ["own", "old", "last"])
@pytest.mark.parametrize(
    "options",
    [
        {"gate": "posterior"},
        {"gate": "posterior", "gate_depth": 0.5},
        {"gate": "posterior", "score_depth": 0.5},
        {"gate": "relevance", "gate_depth": 0.5},
        {"gate": "none"},
        {"gate": "none", "adapters": "residual"},
        {"gate": "none", "exclude_own": True, "targets": "kv"},
        {"gate": "posterior", "gate_depth": 0.5, "calibration": "none", "feature": "all_tokens"},
    ],
    ids=str,
)
def test_what_is_always_on_never_answers_to_what_earlier_experiences_need(options, where):
    """In every block: a change that no gate scales is zero in the directions that were stored before it."""
    learnt = learnt_with(bases=where, **options)
    before, largest = learnt.after[0], 0.0
    for t in range(1, EXPERIENCES):
        after = learnt.after[t]
        for block in range(BLOCKS):
            stored = torch.cat(bases(before, block), 1)
            assert stored.shape[1] >= RANK
            for target in options.get("targets", "v"):
                change = weight_of(after, block, target).double() - weight_of(before, block, target).double()
                assert (change @ stored).abs().max() < 1e-6
                largest = max(largest, float(change.abs().max()))
        before = after
    assert largest > 1e-3


@every_block
@pytest.mark.parametrize("where", ["own", "old", "last"])
def test_the_residual_adapter_trains_inside_the_bases_it_was_given(where, block):
    learnt = learnt_with(bases=where)
    plug = plugs_of(learnt.unmerged[2])[block]
    earlier = bases(learnt.after[1], block)
    allowed = {"own": plug.own, "old": torch.cat(earlier, 1), "last": earlier[-1]}
    rows = plug.residual["v"].down
    assert outside(rows, allowed[where]) < 1e-6
    projector = allowed[where] @ allowed[where].T
    torch.testing.assert_close(plug.residual["v"].projector.double(), projector, atol=1e-6, rtol=0)
    first = plugs_of(learnt.unmerged[0])[block]
    assert outside(first.residual["v"].down, first.own) < 1e-6


def test_one_adapter_can_be_left_out():
    before = copy_of(lively_vit())
    orthogonal, residual = learnt_with(adapters="orthogonal"), learnt_with(adapters="residual")
    for block in range(BLOCKS):
        assert plug_state(orthogonal.after[-1], block, "banks.v.down").shape == (0, WIDTH)
        assert plug_state(residual.after[-1], block, "banks.v.down").shape == (EXPERIENCES * RANK, WIDTH)
        assert not any(plugs_of(model)[block].residual for model in orthogonal.unmerged)
        assert not any(plugs_of(model)[block].orthogonal for model in residual.unmerged)
        name = f"blocks.{block}.attn.qkv.weight"
        assert torch.equal(residual.after[-1][name], before[name])
        assert not torch.equal(orthogonal.after[-1][name], before[name])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exclude_own": True},
        {"targets": "kv"},
        {"bases": "last"},
        {"adapters": "orthogonal"},
        {"adapters": "residual"},
    ],
    ids=str,
)
def test_the_optimiser_holds_what_the_formula_says(options):
    adapters = 1 if "adapters" in options else 2
    projections = len(options.get("targets", "v"))
    expected = BLOCKS * projections * adapters * 2 * RANK * WIDTH + 2 * (WIDTH + 1)  # two classes
    assert learnt_with(**options).optimised == [expected] * EXPERIENCES


# ---- gates ---------------------------------------------------------------------------------------


def test_nine_in_ten_of_its_own_images_open_an_experiences_gate():
    learnt = learnt_with(gate_quantile=0.1)
    for t, state in enumerate(learnt.states):
        method, model = restored(state)
        with torch.no_grad():
            model(learnt.images(t))
        assert by_block(method.context.gates).shape == (BLOCKS, 48, t + 1)
        for gates in method.context.gates.values():
            assert gates.min() >= 0
            assert gates.max() <= 1
            assert 0.85 <= (gates[:, t] == 1).float().mean() <= 0.95


def test_other_images_close_it_more_than_its_own():
    learnt = learnt_with()
    method, model = restored(learnt.states[-1])
    means = []
    for t in range(EXPERIENCES):
        with torch.no_grad():
            model(learnt.images(t))
        means.append(by_block(method.context.gates).mean((0, 1)))
    for t in range(EXPERIENCES):
        assert max(means[i][t] for i in range(EXPERIENCES) if i != t) < means[t][t] - 0.2


def test_an_experiences_gate_is_open_where_its_images_show_nothing_of_their_own():
    """The class token enters the first block the same for all images: later bases hold nothing of it."""
    learnt = learnt_with(feature="cls_in")
    method, model = restored(learnt.states[-1], feature="cls_in")
    with torch.no_grad():
        model(learnt.images(2))
    assert method.context.gates[0][:, 2].mean() > 0.85


def test_no_gradient_passes_through_the_gates():
    learnt = learnt_with()
    model = deepcopy(learnt.unmerged[2])
    x, y = learnt.images(2), learnt.labels(2)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    gated = gradients()
    gates = by_block(model.head.context.gates)
    assert not gates.requires_grad
    assert ((gates[1] > 0) & (gates[1] < 1)).any()  # where they would pass one on, were they allowed to
    with patch.object(DualPlug, "read_gates", lambda self, x, q, k: gates[self.index]):
        constant = gradients()
    assert len(gated) == 2 * 2 * BLOCKS + 2
    assert all(torch.equal(a, b) for a, b in zip(gated, constant, strict=True))


def forced(value: float) -> Any:
    """All gates of finished experiences at `value`."""
    return patch.object(
        DualPlug, "gates", lambda self, e: torch.full((len(e), len(self.gate_threshold)), value)
    )


def plain_features(state: dict[str, Tensor], share: float, images: Tensor) -> Tensor:
    """Features of a ViT without plugs whose v weight holds `share` of the residual adapters."""
    vit = lively_vit()
    with torch.no_grad():
        for i, block in enumerate(vit.blocks):
            block.attn.qkv.weight.copy_(state[f"blocks.{i}.attn.qkv.weight"])
            change = plug_state(state, i, "banks.v.up") @ plug_state(state, i, "banks.v.down")
            row_blocks(block.attn.qkv.weight)["v"].add_(share * change.float())
        return embed(vit, images)


def test_gates_at_zero_leave_the_orthogonal_updates_and_gates_at_one_the_whole_change(images):
    state = learnt_with().states[-1]
    _, model = restored(state)
    outputs = {}
    for value in (0.0, 1.0):
        with forced(value), torch.no_grad():
            outputs[value] = embed(model, images)
        torch.testing.assert_close(outputs[value], plain_features(state, value, images), atol=1e-5, rtol=1e-5)
    assert (outputs[0.0] - outputs[1.0]).abs().max() > 1e-2


def test_without_gates_residual_adapters_are_merged_and_all_images_see_them(images):
    ungated = learnt_with(gate="none")
    with forced(1.0):
        opened = learn(gate="relevance")
    for state, other in zip(ungated.states, opened.states, strict=True):
        assert all(plug_state(state, block, "banks.v.down").shape[0] == 0 for block in range(BLOCKS))
        expected = plain_features(other, 1.0, images)
        torch.testing.assert_close(plain_features(state, 0.0, images), expected, atol=1e-3, rtol=1e-3)
    with forced(1.0), torch.no_grad():
        expected = opened.model(images)
    with torch.no_grad():
        torch.testing.assert_close(ungated.model(images), expected, atol=5e-3, rtol=1e-3)


def test_posterior_gates_are_the_probability_of_this_experience_or_a_later_one(images):
    method, model = restored(learnt_with().states[-1], gate="posterior", tau=0.7)
    with torch.no_grad():
        model(images)
    relevance, gates = by_block(method.context.relevance), by_block(method.context.gates)
    means = [plug.mean_evidence.tolist() for plug in plugs_of(model)]
    for block in range(BLOCKS):
        for b, row in enumerate(gates[block].tolist()):
            s = scores_by_hand(relevance[: block + 1, b].tolist(), means[: block + 1], "remaining")
            pi = softmax_by_hand(s, 0.7)
            assert row == pytest.approx([sum(pi[i:]) for i in range(EXPERIENCES)], abs=1e-5)
    assert (gates[:, :, 0] - 1).abs().max() < 1e-6
    assert (gates.diff(dim=2) <= 0).all()


@pytest.mark.parametrize("gate", ["none", "posterior"])
def test_all_gates_are_open_while_an_experience_is_learnt(gate, images):
    model = learnt_with(gate=gate).unmerged[2]
    with torch.no_grad():
        output = embed(model, images)
        with forced(1.0):
            torch.testing.assert_close(output, embed(model, images), atol=1e-6, rtol=1e-6)


@every_block
def test_finished_adapters_are_in_the_weight_while_an_experience_is_learnt_and_out_of_it_afterwards(block):
    learnt = learnt_with(gate="posterior")
    before, after = (weight_of(learnt.after[i], block, "v") for i in (1, 2))
    attention = learnt.unmerged[2].blocks[block].attn
    bank, orthogonal = attention.plug.banks["v"], attention.plug.orthogonal["v"]
    assert len(bank.down) == 2 * RANK
    opened = row_blocks(attention.qkv.weight)["v"]
    torch.testing.assert_close(opened, before + bank.up @ bank.down, atol=1e-6, rtol=0)
    torch.testing.assert_close(after, before + orthogonal.up @ orthogonal.down, atol=1e-6, rtol=0)
    assert (opened - before).abs().max() > 1e-3


def test_an_experience_that_is_broken_off_and_begun_again_opens_its_gates_once():
    _, model = restored(learnt_with(gate="posterior").states[1], gate="posterior")
    attention = model.blocks[0].attn
    weights = [attention.qkv.weight.clone()]
    for _ in range(2):
        attention.plug.open(attention.qkv)
        weights.append(attention.qkv.weight.clone())
    assert torch.equal(weights[1], weights[2])
    assert not torch.allclose(weights[0], weights[1], atol=1e-3)
    attention.plug.shut(attention.qkv)
    assert torch.equal(weights[0], attention.qkv.weight)


class HalfPrecisionProducts(TorchDispatchMode):
    """Records the shapes of all matrix products in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, Tensor) and a.dtype == torch.bfloat16]
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm) and tensors:
            self.shapes.add((func.overloadpacket, *(tuple(t.shape) for t in tensors)))
        return func(*args, **(kwargs or {}))


def products(model: VisionTransformer, images: Tensor) -> set[tuple[Any, ...]]:
    """The shapes of the products in bfloat16 in a forward and a backward pass of training."""
    with torch.autocast("cpu", torch.bfloat16), HalfPrecisionProducts() as recorded:
        embed(model, images).float().sum().backward()
    return recorded.shapes


def test_products_in_mixed_precision_have_the_same_shapes_in_every_experience(images):
    """On a CPU the library compiles a kernel for each shape and keeps it: half a megabyte each."""
    second, third = (products(deepcopy(learnt_with(gate="posterior").unmerged[i]), images) for i in (1, 2))
    assert second == third
    assert (torch.ops.aten.mm, (len(images) * 17, WIDTH), (WIDTH, 2 * RANK)) in second


def test_the_bases_of_a_block_enter_no_product_in_mixed_precision(images):
    """Their number differs from block to block and from experience to experience."""
    _, model = restored(learnt_with(gate="posterior").states[-1], gate="posterior")
    sizes = {plug.basis.shape[1] for plug in plugs_of(model)} - {WIDTH}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), HalfPrecisionProducts() as recorded:
        model(images)
    assert recorded.shapes
    assert sizes.isdisjoint(size for _, *shapes in recorded.shapes for shape in shapes for size in shape)


# ---- the whole forward pass by hand --------------------------------------------------------------


def scores_by_hand(relevance: list[list[float]], means: list[list[float]], score: str) -> list[float]:
    """s_i of one sample from e and the mean evidence, [block][experience]."""
    t = len(relevance[0])
    totals = [0.0] * t
    for e, mean in zip(relevance, means, strict=True):
        for i in range(t):
            left = 1 - sum(e[:i]) if score == "remaining" else 1.0
            totals[i] += (e[i] / left + 1e-6) / (mean[i] + 1e-6)
    return [total / len(relevance) for total in totals]


def softmax_by_hand(s: list[float], tau: float) -> list[float]:
    weights = [math.exp((value - max(s)) / tau) for value in s]
    return [w / sum(weights) for w in weights]


def posterior_by_hand(s: list[float], hyper: Any) -> list[float]:
    if hyper.calibration != "stick":
        return softmax_by_hand(s, hyper.tau)
    p = [1.0] + [1 / (1 + math.exp(-(value - hyper.theta) / hyper.tau)) for value in s[1:]]
    return [p[i] * math.prod(1 - later for later in p[i + 1 :]) for i in range(len(p))]


def weights_by_hand(pi: list[float], hyper: Any) -> list[float]:
    """What is added to the logits of each experience's classes."""
    t = len(pi)
    sure = 1 + sum(p * math.log(p) for p in pi if p > 0) / math.log(t) if t > 1 else 0.0
    if hyper.calibration == "none":
        return [0.0] * t
    if hyper.calibration == "hard":
        return [-math.inf if sure > hyper.certain and p < max(pi) else 0.0 for p in pi]
    share = sure if hyper.calibration == "stick" else 1.0
    return [hyper.beta * share * math.log(max(p, 1e-4)) for p in pi]


class ByHand:
    """The forward pass in float64, sample by sample and head by head, from parameters and buffers alone."""

    def __init__(self, model: VisionTransformer, hyper: Any) -> None:
        self.vit, self.hyper = deepcopy(model).double(), hyper
        self.learning = model.head.context.learning
        self.depth, self.gated = round(hyper.score_depth * BLOCKS), round(hyper.gate_depth * BLOCKS)
        self.rows: list[list[Tensor]] = [[] for _ in model.blocks]
        self.outputs: list[list[Tensor]] = [[] for _ in model.blocks]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        return torch.stack([self.sample(image) for image in images.double()])

    def sample(self, image: Tensor) -> Tensor:
        vit = self.vit
        x = torch.cat([vit.cls_token[0], vit.patch_embed(image[None])[0]]) + vit.pos_embed[0]
        self.relevance: list[list[float]] = []
        for i, block in enumerate(vit.blocks):
            change = self.attention(i, block.attn, block.norm1(x))
            self.outputs[i].append(change)
            x = x + change
            x = x + block.mlp(block.norm2(x))
        return self.classified(vit.norm(x)[0])

    def attention(self, i: int, attention: Any, u: Tensor) -> Tensor:
        plug, heads = attention.plug, range(attention.num_heads)
        dim = WIDTH // len(heads)
        columns = [slice(h * dim, (h + 1) * dim) for h in heads]
        projections = self.projections(attention, u)
        for target, adapter in plug.orthogonal.items():
            projections[target] = projections[target] + u @ (adapter.up @ adapter.free @ adapter.projector).T
        maps = [
            torch.softmax(projections["q"][:, c] @ projections["k"][:, c].T / math.sqrt(dim), 1)
            for c in columns
        ]
        gates = self.gates(i, plug, self.feature(u, maps))
        for target in self.hyper.targets:
            projections[target] = projections[target] + self.residual(plug, target, gates, u)
        maps = [
            torch.softmax(projections["q"][:, c] @ projections["k"][:, c].T / math.sqrt(dim), 1)
            for c in columns
        ]
        joined = torch.cat([maps[h] @ projections["v"][:, columns[h]] for h in heads], 1)
        return joined @ attention.proj.weight.T + attention.proj.bias

    def projections(self, attention: Any, u: Tensor) -> dict[str, Tensor]:
        weights, biases = row_blocks(attention.qkv.weight), row_blocks(attention.qkv.bias)
        return {target: u @ weights[target].T + biases[target] for target in "qkv"}

    def feature(self, u: Tensor, maps: list[Tensor]) -> Tensor:
        if self.hyper.feature == "cls_attn":
            return torch.stack([attended[0] @ u for attended in maps])
        return u[:1] if self.hyper.feature == "cls_in" else u

    def gates(self, i: int, plug: Any, rows: Tensor) -> list[float]:
        self.rows[i].append(rows)
        parts = [plug.basis[:, column > 0] for column in plug.basis_owner.T]
        e = [float((rows @ part).square().sum() / rows.square().sum()) for part in parts]
        self.relevance.append(e)
        n, first = len(plug.gate_threshold), BLOCKS - self.gated
        if self.hyper.gate == "none" or i < first:
            return [1.0] * n
        if self.hyper.gate == "relevance":
            return [min(e[j] / float(plug.gate_threshold[j]), 1.0) for j in range(n)]
        if self.learning:
            return [1.0] * n
        pi = posterior_by_hand(self.scores(slice(first, i + 1)), self.hyper)
        return [sum(pi[j:]) for j in range(n)]

    def scores(self, blocks: slice) -> list[float]:
        means = [plug.mean_evidence.tolist() for plug in plugs_of(self.vit)]
        return scores_by_hand(self.relevance[blocks], means[blocks], self.hyper.score)

    def residual(self, plug: Any, target: str, gates: list[float], u: Tensor) -> Tensor:
        bank, change = plug.banks[target], torch.zeros_like(u)
        merged = target == "v" and plug.shut_weight is not None
        for j, gate in enumerate(gates if len(bank.down) and not merged else []):
            rows = slice(j * self.hyper.rank, (j + 1) * self.hyper.rank)
            change = change + gate * u @ (bank.up[:, rows] @ bank.down[rows]).T
        if target in plug.residual:
            adapter = plug.residual[target]
            change = change + u @ (adapter.up @ adapter.free @ adapter.projector).T
        return change

    def classified(self, x: Tensor) -> Tensor:
        heads = self.vit.head.tasks
        weights = [0.0] * len(heads)
        if not self.learning and self.hyper.calibration != "none":
            s = self.scores(slice(BLOCKS - self.depth, BLOCKS))
            weights = weights_by_hand(posterior_by_hand(s, self.hyper), self.hyper)
        logits = torch.full((6,), -math.inf, dtype=torch.float64)
        for head, weight in zip(heads, weights, strict=True):
            logits[head.classes] = head.weight @ x + head.bias + weight
        return logits


@torch.no_grad()
def stirred(model: VisionTransformer) -> VisionTransformer:
    """The model with random numbers wherever it learns or counts: every term of the sum matters."""
    rng = torch.Generator().manual_seed(5)

    def draw(tensor: Tensor, scale: float) -> None:
        tensor.copy_(scale * torch.randn(tensor.shape, generator=rng))

    for block in model.blocks:
        plug = block.attn.plug
        draw(block.attn.qkv.weight, 0.3)
        draw(block.attn.qkv.bias, 0.3)
        for part in [*plug.banks.values(), *plug.orthogonal.values(), *plug.residual.values()]:
            draw(part.up, 0.5)
        plug.mean_evidence.copy_(0.1 + 0.4 * torch.rand(len(plug.mean_evidence), generator=rng))
        plug.gate_threshold.copy_(0.1 + 0.4 * torch.rand(len(plug.gate_threshold), generator=rng))
    for head in model.head.tasks:
        draw(head.weight, 0.1)
        draw(head.bias, 0.1)
    return model


def check_by_hand(model: VisionTransformer, hyper: Any, images: Tensor) -> None:
    """Every block's attention and the logits agree with the arithmetic in float64."""
    fused: list[Tensor] = []
    hooks = [b.attn.register_forward_hook(lambda _, __, out: fused.append(out)) for b in model.blocks]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    by_hand = ByHand(model, hyper)
    torch.testing.assert_close(logits.double(), by_hand.logits(images), atol=1e-5, rtol=1e-5)
    for out, expected in zip(fused, by_hand.outputs, strict=True):
        torch.testing.assert_close(out.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("targets", ["v", "kv", "qkv"])
def test_a_trained_models_pass_by_hand(targets, feature, gate, images):
    options = {"targets": targets, "feature": feature, "gate": gate, "tau": 0.8}
    method, model = restored(state_of(gate, targets=targets), **options)
    check_by_hand(stirred(model), method.hyper, images)
    banks = [plug.banks[target].down for plug in plugs_of(model) for target in targets]
    assert all(len(bank) == (0 if gate == "none" else EXPERIENCES * RANK) for bank in banks)
    if gate != "none":
        gates = by_block(method.context.gates)
        assert ((gates > 0.05) & (gates < 0.95)).float().mean() > 0.2


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("targets", ["v", "kv"])
def test_a_pass_of_the_third_experiences_training_by_hand(targets, gate, images):
    learnt = learnt_with(targets=targets, gate=gate)
    check_by_hand(stirred(deepcopy(learnt.unmerged[2])), learnt.method.hyper, images)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("score", ["share", "remaining"])
@pytest.mark.parametrize(
    ("score_depth", "gate_depth", "gate"),
    [
        (1.0, 1.0, "relevance"),
        (0.5, 1.0, "relevance"),
        (0.5, 1.0, "posterior"),
        (0.5, 0.5, "posterior"),
        (1.0, 0.5, "posterior"),
    ],
)
def test_calibrations_by_hand(calibration, score, score_depth, gate_depth, gate, images):
    """The gates use the posterior of the calibration in force."""
    trained = {"score_depth": score_depth, "gate_depth": gate_depth, "gate": gate}
    options = {"calibration": calibration, "score": score, **trained}
    state = learnt_with(**trained).states[-1]
    method, model = restored(state, beta=0.7, certain=0.1, **options)
    check_by_hand(stirred(model), method.hyper, images)


# ---- logits --------------------------------------------------------------------------------------


def raw_logits(model: VisionTransformer, images: Tensor) -> Tensor:
    return ClassHead.forward(model.head, embed(model, images))


@pytest.mark.parametrize("calibration", ["softmax", "hard", "stick"])
def test_calibration_adds_to_each_experiences_classes_what_its_posterior_says(calibration, images):
    method, model = restored(learnt_with().states[-1], calibration=calibration, certain=0.2, beta=1.5)
    with torch.no_grad():
        calibrated, raw = model(images), raw_logits(model, images)
    relevance = by_block(method.context.relevance)
    means = [plug.mean_evidence.tolist() for plug in plugs_of(model)]
    for b in range(len(images)):
        s = scores_by_hand(relevance[:, b].tolist(), means, "remaining")
        weights = weights_by_hand(posterior_by_hand(s, method.hyper), method.hyper)
        expected = [raw[b, c].item() + weights[ORDER.index(c) // 2] for c in range(6)]
        assert calibrated[b].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("gate", GATES)
def test_without_calibration_logits_are_raw(gate, images):
    _, model = restored(state_of(gate), calibration="none", gate=gate)
    _, calibrated = restored(state_of(gate), gate=gate)
    with torch.no_grad():
        assert torch.equal(model(images), raw_logits(model, images))
        assert not torch.allclose(calibrated(images), raw_logits(model, images), atol=1e-2)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_logits_are_raw_while_an_experience_is_learnt(calibration, images):
    learnt = learnt_with(calibration=calibration)
    with torch.no_grad():
        for model in learnt.unmerged:
            assert torch.equal(model(images), raw_logits(model, images))
    first = learnt_with().unmerged[-1].state_dict()
    assert all(torch.equal(t, first[name]) for name, t in learnt.unmerged[-1].state_dict().items())


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("gate", GATES)
def test_the_first_experience_alone_is_certain_and_changes_no_logits(gate, calibration):
    learnt = learnt_with(gate=gate)
    method, model = restored(learnt.states[0], gate=gate, calibration=calibration)
    with torch.no_grad():
        logits = model(learnt.images(0))
        assert torch.equal(logits, raw_logits(model, learnt.images(0)))
    if calibration != "none":
        assert torch.equal(model.head.posterior, torch.ones(48, 1))
    if gate == "posterior":
        assert torch.equal(by_block(method.context.gates), torch.ones(BLOCKS, 48, 1))


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("gate", GATES)
def test_a_batch_is_one_pass_and_logits_depend_on_no_batch_mate(gate, calibration, images):
    _, model = restored(state_of(gate), gate=gate, calibration=calibration, certain=0.1)
    passes = []
    model.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        together = model(images)
        assert len(passes) == 1
        alone = torch.cat([model(image[None]) for image in images])
        reversed_ = model(images.flip(0)).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reversed_, together, atol=1e-5, rtol=1e-5)


def test_an_evaluation_is_one_pass_a_batch():
    learnt = learnt_with()
    passes = []
    hook = learnt.model.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    learnt.strategy.eval([learnt.benchmark.test_stream[1]])
    hook.remove()
    assert len(passes) == math.ceil(48 / 32)


@pytest.mark.parametrize(
    ("score_depth", "gate_depth", "gate", "calibration", "reads", "scored"),
    [
        (1.0, 1.0, "none", "softmax", 2, [0, 1]),
        (0.5, 1.0, "none", "softmax", 1, [1]),
        (0.01, 1.0, "none", "softmax", 1, [1]),
        (0.5, 1.0, "relevance", "softmax", 2, [1]),
        (0.5, 0.5, "relevance", "softmax", 1, [1]),
        (1.0, 1.0, "relevance", "none", 2, []),
        (0.5, 0.5, "posterior", "none", 1, [1]),
        (0.5, 1.0, "posterior", "none", 2, [0, 1]),
        (0.5, 1.0, "posterior", "softmax", 2, [0, 1]),
        (1.0, 0.5, "posterior", "softmax", 2, [0, 1]),
        (0.5, 1.0, "none", "none", 0, []),
    ],
)
def test_only_blocks_that_are_asked_look(score_depth, gate_depth, gate, calibration, reads, scored, images):
    trained = {"gate": gate, "score_depth": score_depth, "gate_depth": gate_depth}
    state = learnt_with(**trained).states[-1]
    method, model = restored(state, calibration=calibration, **trained)
    read_out = Mock(wraps=features)
    with torch.no_grad(), patch.object(duallora_modules, "features", read_out):
        model(images)
    assert read_out.call_count == reads
    assert sorted(method.context.relevance) == scored


# ---- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"feature": "all_tokens"}, {"energy": "sigma4", "lamb": 0.95}], ids=str
)
def test_after_an_experience_the_bases_hold_the_energy_of_its_trained_features(options):
    learnt = learnt_with(**options)
    hyper, grown_later = learnt.method.hyper, 0
    for t, model in enumerate(learnt.unmerged):
        by_hand = ByHand(model, hyper)
        by_hand.logits(learnt.images(t))
        threshold = hyper.lamb + (hyper.lame - hyper.lamb) * t / EXPERIENCES
        for block, rows in enumerate(by_hand.rows):
            c = torch.cat(rows).T @ torch.cat(rows) / len(torch.cat(rows))
            m = c if hyper.energy == "sigma2" else c @ c
            basis = plug_state(learnt.after[t], block, "basis")
            held = float((basis.T @ m @ basis).trace() / m.trace())
            assert learnt.diagnostics[t]["captured_energy"][block] == pytest.approx(held, abs=1e-5)
            added = int(learnt.diagnostics[t]["bases_added"][block])
            assert added < room(1.0, basis.shape[1] - added, t)  # the cap does not bind
            assert held >= threshold - 1e-9
            before_growth = torch.cat([*bases(learnt.after[t], block)[:t], plugs_of(model)[block].own], 1)
            grown_later += basis.shape[1] > before_growth.shape[1]
    assert grown_later or "energy" in options


@every_block
def test_what_is_usual_is_measured_on_the_experiences_trained_features(block):
    learnt = learnt_with()
    for t, model in enumerate(learnt.unmerged):
        by_hand = ByHand(model, learnt.method.hyper)
        by_hand.logits(learnt.images(t))
        parts = bases(learnt.after[t], block)
        rows = torch.stack(by_hand.rows[block])
        e = torch.stack([(rows @ p).square().sum((1, 2)) / rows.square().sum((1, 2)) for p in parts], 1)
        rho = e[:, t] / (1 - e[:, :t].sum(1))
        assert plug_state(learnt.after[t], block, "mean_evidence")[t].item() == pytest.approx(
            rho.mean().item(), rel=1e-4
        )
        quantile = e[:, t].quantile(learnt.method.hyper.gate_quantile).item()
        threshold = plug_state(learnt.after[t], block, "gate_threshold")[t].item()
        assert threshold == pytest.approx(quantile, rel=1e-4)


def room(capacity: float, taken: int, t: int, each: float = 1.0) -> int:
    """How many bases experience t may add: its share, or what is left, less `rank` for each one to come."""
    left = int(capacity * WIDTH) - taken - RANK * (EXPERIENCES - 1 - t)
    return max(min(left, int(each * WIDTH)), RANK)


@pytest.mark.parametrize("capacity", [0.1, 0.5, 1.0])
def test_an_experience_takes_what_room_is_left_but_keeps_some_for_those_to_come(capacity):
    learnt, taken = learnt_with(capacity=capacity, lamb=1.0, lame=1.0), 0
    for t, diagnostics in enumerate(learnt.diagnostics):
        assert diagnostics["bases_added"] == [room(capacity, taken, t)] * BLOCKS
        taken += room(capacity, taken, t)
    assert taken == max(int(capacity * WIDTH), RANK * EXPERIENCES)


@pytest.mark.parametrize("each", [0.05, 0.25])
def test_an_experience_takes_at_most_its_share_of_the_width_and_at_least_rank(each):
    learnt, taken = learnt_with(experience_capacity=each, lamb=1.0, lame=1.0), 0
    for t, diagnostics in enumerate(learnt.diagnostics):
        assert diagnostics["bases_added"] == [room(1.0, taken, t, each)] * BLOCKS
        taken += room(1.0, taken, t, each)
    assert taken == EXPERIENCES * max(int(each * WIDTH), RANK)


class Looking(SupervisedPlugin):
    """Takes the statistics once more after every epoch."""

    def after_training_epoch(self, strategy, *args, **kwargs):
        method, state = strategy.plugins[0], torch.get_rng_state()
        assert strategy.model.training
        method.energies(strategy)
        assert strategy.model.training
        assert torch.equal(torch.get_rng_state(), state)
        assert method.context.collect is None


def test_a_pass_for_statistics_changes_nothing():
    looked, plain = learn(Looking()), learnt_with()
    assert all(torch.equal(looked.after[-1][name], plain.after[-1][name]) for name in plain.after[-1])


def test_diagnostics_are_what_an_evaluation_showed():
    learnt = learnt_with()
    method, model = restored(learnt.states[-1], tau=0.5)
    for plug in plugs_of(model):
        plug.mean_evidence.copy_(plug.mean_evidence * torch.tensor([0.4, 1.0, 0.9]))  # so that it errs
    learner(model, method).eval(learnt.benchmark.test_stream)
    values = method.diagnostics()
    right, sure, own, earlier, later = [], [], [], [], []
    for i in range(EXPERIENCES):
        with torch.no_grad():
            model(learnt.images(i))
        gates = by_block(method.context.gates)
        own.append(gates[:, :, i])
        earlier.append(gates[:, :, :i].flatten(1))
        later.append(gates[:, :, i + 1 :].flatten(1))
        relevance = by_block(method.context.relevance)
        means = [plug.mean_evidence.tolist() for plug in plugs_of(model)]
        for b in range(48):
            pi = softmax_by_hand(scores_by_hand(relevance[:, b].tolist(), means, "remaining"), 0.5)
            right.append(pi.index(max(pi)) == i)
            sure.append(1 + sum(p * math.log(p) for p in pi) / math.log(EXPERIENCES))
    assert 0.1 < sum(right) / len(right) < 0.9
    assert values["task_identity_accuracy"] == pytest.approx(sum(right) / len(right))
    assert values["task_confidence"] == pytest.approx(sum(sure) / len(sure), abs=1e-4)
    for name, gates in {"gate_own": own, "gate_earlier": earlier, "gate_later": later}.items():
        assert values[name] == pytest.approx(torch.cat(gates, 1).mean(1).tolist(), abs=1e-4)
    assert set(learnt.method.diagnostics()) | set(values) <= set(DualLora.diagnostic_help)


# ---- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
def test_the_state_after_every_experience_gives_the_same_logits(gate):
    learnt = learnt_with(gate=gate)
    for state, expected in zip(learnt.states, learnt.logits, strict=True):
        with torch.no_grad():
            assert torch.equal(restored(state, gate=gate)[1](learnt.images(0)), expected)


@pytest.mark.parametrize("options", [{}, {"gate": "none"}, {"gate": "posterior", "bases": "last"}], ids=str)
def test_learning_on_from_a_restored_state_is_learning_without_a_break(options):
    learnt = learnt_with(**options)
    for t in range(EXPERIENCES - 1):
        method, model = restored(learnt.states[t], **options)
        strategy = learner(model, method, epochs=2)
        torch.set_rng_state(learnt.rng[t])
        for experience in stream().train_stream[t + 1 :]:
            strategy.train(experience)
        resumed, expected = copy_of(model), learnt.after[-1]
        assert resumed.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(resumed[name], expected[name])] == []


# ---- what is refused -----------------------------------------------------------------------------


def test_more_directions_than_the_backbone_is_wide_are_refused():
    with pytest.raises(UsageError, match=r"rank is 11: 3 experiences need 33 .* 32 wide; legal: at most 10"):
        Run("duallora", epochs=1, vit=tiny_vit, rank=11)


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(UsageError, match=r"duallora.rank is 33; legal: at most .* 32"):
        DualLora(rank=33).attach(tiny_vit())


def test_a_backbone_without_a_class_token_is_refused():
    with pytest.raises(UsageError, match="class token"):
        DualLora().attach(tiny_vit(class_token=False, global_pool="avg"))


def test_normalised_keys_cannot_be_adapted():
    with pytest.raises(UsageError, match=r"duallora.targets is 'kv'.* legal: v"):
        DualLora(targets="kv").attach(tiny_vit(qk_norm=True))
    DualLora(targets="v").attach(tiny_vit(qk_norm=True))


@pytest.mark.parametrize("options", [{"rank": 4}, {"gate": "none"}, {"adapters": "orthogonal"}], ids=str)
def test_a_state_learnt_with_other_adapters_is_refused(options):
    with pytest.raises(UsageError, match="it was learnt with"):
        restored(learnt_with().states[-1], **options)


def test_a_block_that_sees_nothing_of_its_own_scores_all_experiences_alike():
    """The class token enters the first block the same for all images."""
    learnt = learnt_with(feature="cls_in")
    method, model = restored(learnt.states[-1], feature="cls_in")
    with torch.no_grad():
        model(learnt.images(2))
    torch.testing.assert_close(method.context.score[0], torch.ones(48, EXPERIENCES), atol=0.05, rtol=0)


def test_what_an_earlier_evaluation_showed_is_not_told_of_a_later_experience():
    model, method = lively_vit(), DualLora(**SMALL)
    benchmark, strategy = stream(), learner(model, method, epochs=1)
    strategy.train(benchmark.train_stream[0])
    strategy.eval([benchmark.test_stream[0]])
    assert "gate_own" in method.diagnostics()
    strategy.train(benchmark.train_stream[1])
    assert "gate_own" not in method.diagnostics()


def test_a_block_without_gates_is_told_as_always_open():
    method, model = restored(
        learnt_with(gate="posterior", gate_depth=0.5).states[-1], gate="posterior", gate_depth=0.5
    )
    learner(model, method).eval(stream().test_stream)
    diagnostics = method.diagnostics()
    assert len(diagnostics["gate_later"]) == BLOCKS
    assert diagnostics["gate_later"][0] == 1.0
    assert diagnostics["gate_later"][1] < 1.0
