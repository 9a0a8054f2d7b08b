"""DualLoRA: an orthogonal and a residual low-rank adapter, and a dynamic memory (arXiv 2411.00623).

The paper's text and code were not available to us; only its abstracts and secondary notes were. So this
is an implementation of what those say, with every gap filled by a named hyper-parameter. No number it
produces is the authors' result.

Confirmed by the sources: two adapters beside each frozen weight; the orthogonal one is updated outside
the subspace of earlier experiences, the residual one inside the subspace of experience-specific bases;
bases come from class-token features only; at inference the residual adapter's output is scaled by the
similarity between its bases and the current attention; the same bases estimate the task identity, whose
confidence calibrates the logits; one forward pass.

Inferred, and therefore options: adapted projections (`targets`), ranks, which class-token feature
(`feature`), whose bases the residual adapter uses (`bases`, the sources disagree), how much energy they
hold and their number (`energy`, `lamb`, `lame`, `capacity`), whether the orthogonal adapter keeps out of
the experience's own bases (`exclude_own`), the gate's formula (`gate`, `gate_quantile`), the score, the
posterior and the calibration (`score`, `score_depth`, `calibration`, `tau`, `beta`, `theta`, `certain`).

A block, with u (B, N, D) its normalised input and everything per block:

    c_h  = softmax(q_0 k^T / sqrt(Dh)) u           the class token's read-out of head h, (B, H, D)
    e_i  = sum_h |S_i^T c_h|^2 / sum_h |c_h|^2      relevance of experience i's bases S_i, (B,)
    v    = W u + B_O A_O u + sum_i g_i(e) B_i A_i u

A_O = a Q Q^T with Q the complement of all earlier bases, and A_i = a_i S S^T with S the bases that the
option `bases` names: the subspaces hold by construction, whatever the optimiser does. After an experience
B_O A_O is merged into W, its S_i takes in what training added to the features, and (B_i, A_i, S_i) never
change again. How well each part does is measured in docs/duallora.md.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods import identity
from methods.base import Method, clean_batches, feature_pass
from methods.errors import UsageError
from methods.head import ClassHead, HeadInit
from methods.hyper import STRICT, Hyper, hyper
from methods.identity import TINY, Calibration, Score
from methods.inflora import InfLora
from methods.lora import check_rank, merge
from methods.registry import register
from methods.subspace import (
    ROW_NORM,
    Energy,
    captured,
    complement,
    energy_matrix,
    growth,
    joined,
    no_inputs,
    rising,
)
from methods.vit import QKV, Plug, open_seams

Gate = Literal["none", "relevance", "posterior"]
Feature = Literal["cls_attn", "cls_in", "all_tokens"]

M = TypeVar("M", bound=nn.Module)

#: Which gates a mean is over: columns are experiences (t,), truth the sample's own (B, 1).
GATES: Mapping[str, Callable[[Any, Any], Tensor]] = {
    "gate_own": operator.eq,
    "gate_earlier": operator.lt,
    "gate_later": operator.gt,
}

CONFIRMED = "arXiv 2411.00623, abstract"
OURS = "ours: not known from the paper"
CHOSEN = "ours, chosen on validation: docs/duallora.md"


@dataclass(frozen=True, config=STRICT)
class DualLoraHyper(Hyper):
    """Hyper-parameters of DualLoRA. `source` says which are confirmed and which are ours."""

    lr: float = hyper(2e-3, "learning rate of Adam", source=CHOSEN, gt=0)
    rank: int = hyper(
        5, "rank of each of the two adapters", source="ours: trains as many parameters as InfLoRA", ge=1
    )
    targets: str = hyper(
        "v",
        "projections that are adapted, some of q, k, v",
        source="ours: class-token features protect what comes after the attention map, not the map itself",
        pattern="^q?k?v?$",
        min_length=1,
    )
    adapters: Literal["both", "orthogonal", "residual"] = hyper(
        "both", "which of the two adapters is there", source=f"both: {CONFIRMED}; the others are ablations"
    )
    feature: Feature = hyper(
        "cls_attn",
        "what bases are made of and compared with: the class token's read-out of every head (cls_attn), its "
        "normalised input (cls_in), the normalised inputs of all tokens (all_tokens)",
        source="class token: a summary of the paper; which of its features: ours",
    )
    bases: Literal["own", "old", "last"] = hyper(
        "old",
        "the residual adapter trains inside the bases that all earlier experiences added (old), that the "
        "last one added (last), or that its own adds (own)",
        source="two notes on the paper disagree; chosen on validation, docs/duallora.md",
    )
    exclude_own: bool = hyper(
        False, "keep the orthogonal adapter out of the experience's own bases too", source=OURS
    )
    energy: Energy = hyper(
        "sigma2",
        "energy of the features: squares of their singular values (sigma2), or fourth powers (sigma4)",
        source="ours: GPM's rule",
    )
    lamb: float = hyper(
        0.95, "share of the energy that bases hold after the first experience", source=CHOSEN, gt=0, le=1
    )
    lame: float = hyper(
        0.98, "share it grows towards with the number of experiences", source=CHOSEN, gt=0, le=1
    )
    capacity: float = hyper(
        5 / 6,
        "share of the width that all bases may take; `rank` of them are kept for each experience to come",
        source=CHOSEN,
        gt=0,
        le=1,
    )
    gate: Gate = hyper(
        "posterior",
        "dynamic memory: how residual adapters are scaled by sample: not at all (none), by e_i over its "
        "`gate_quantile` (relevance), by the posterior that the experience is i or later (posterior)",
        source=f"that there is one: {CONFIRMED}; formulas ours, chosen on validation, docs/duallora.md",
    )
    gate_quantile: float = hyper(
        0.1, "quantile of an experience's own relevance above which its gate is open", source=OURS, gt=0, lt=1
    )
    calibration: Calibration = hyper(
        "softmax",
        "how the task posterior changes the logits: see methods/identity.py",
        source=f"that it does: {CONFIRMED}; formulas: ours",
    )
    score: Score = hyper(
        "remaining", "what tells the experience: the relevance, or its share of what is left", source=CHOSEN
    )
    score_depth: float = hyper(
        0.5, "share of the blocks, from the last one on, whose scores are averaged", source=CHOSEN, gt=0, le=1
    )
    tau: float = hyper(0.3, "temperature of the posterior", source=CHOSEN, gt=0)
    beta: float = hyper(1.0, "weight of the log posterior in the logits", source=OURS, ge=0)
    theta: float = hyper(1.0, "score at which calibration=stick calls bases active", source=OURS)
    certain: float = hyper(
        0.5, "confidence from which calibration=hard masks other experiences", source=OURS, ge=0, le=1
    )


class Trail:
    """What the blocks see during one forward pass, for the blocks behind them and for the classifier."""

    def __init__(self) -> None:
        #: An experience is being learnt: its adapters are open, and nothing is calibrated.
        self.learning = False
        #: Called with (block, rows) during a pass for statistics.
        self.collect: Callable[[int, Tensor], None] | None = None
        #: By block: relevance (B, t), sum of scores of the blocks so far (B, t), gates (B, t).
        self.relevance: dict[int, Tensor] = {}
        self.score: dict[int, Tensor] = {}
        self.gates: dict[int, Tensor] = {}


class Adapter(nn.Module):
    """B a S S^T: a low-rank map whose row space lies in the span of S (D, k) by construction. Zero at first.

    a (r, D) is drawn uniformly, so that the rows of A = a S S^T have norm `ROW_NORM`. It is not kept in
    the coordinates of S: Adam's steps would depend on which basis of the subspace was found.
    """

    basis: Tensor

    def __init__(self, basis: Tensor, rank: int) -> None:
        super().__init__()
        width, k = basis.shape
        self.register_buffer("basis", basis.float())
        self.free = nn.Parameter(torch.empty(rank, width, device=basis.device))
        self.up = nn.Parameter(torch.zeros(width, rank, device=basis.device))
        bound = math.sqrt(3) * ROW_NORM / math.sqrt(max(k, 1))
        nn.init.uniform_(self.free, -bound, bound)

    @property
    def down(self) -> Tensor:
        """A = a S S^T, (r, D)."""
        return (self.free @ self.basis) @ self.basis.T


class Bank(nn.Module):
    """Residual adapters of finished experiences, stacked: `down` (n r, D), `up` (D, n r)."""

    down: Tensor
    up: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("down", torch.zeros(0, width))
        self.register_buffer("up", torch.zeros(width, 0))

    def add(self, adapter: Adapter) -> None:
        self.down = torch.cat([self.down, adapter.down.detach()])
        self.up = torch.cat([self.up, adapter.up.detach()], 1)


def by_target(parts: dict[str, M]) -> dict[str, M]:
    """Parts by the projection they change, registered with the module that owns them."""
    return cast(dict[str, M], nn.ModuleDict(parts))


class DualPlug(Plug):
    """Both adapters of one block, the bases of all experiences, and the gates."""

    basis: Tensor  # (D, m), orthonormal: [S_1 | ... | S_t]
    member: Tensor  # (m, t), 1 where a column belongs to an experience
    usual: Tensor  # (t,), mean evidence of an experience's own images
    normal: Tensor  # (t,), the quantile of their relevance

    def __init__(self, index: int, first: int, width: int, hyper: DualLoraHyper, trail: Trail) -> None:
        super().__init__()
        self.index, self.first, self.hyper, self.trail = index, first, hyper, trail
        self.register_buffer("basis", torch.zeros(width, 0))
        self.register_buffer("member", torch.zeros(0, 0))
        self.register_buffer("usual", torch.zeros(0))
        self.register_buffer("normal", torch.zeros(0))
        self.banks = by_target({target: Bank(width) for target in hyper.targets})
        self.orthogonal: dict[str, Adapter] = by_target({})
        self.residual: dict[str, Adapter] = by_target({})

    # ---- what the block has to do ------------------------------------------------------------

    @property
    def scored(self) -> bool:
        """Whether its relevance tells the experience."""
        judged = self.hyper.calibration != "none" or self.hyper.gate == "posterior"
        return judged and self.index >= self.first

    @property
    def gated(self) -> bool:
        """Whether its residual adapters are scaled by sample; else they are merged like all else."""
        return self.hyper.gate == "relevance" or (self.hyper.gate == "posterior" and self.scored)

    @property
    def judges(self) -> bool:
        """Whether a pass needs the sample's relevance.

        While an experience is learnt it is known to be the newest: nothing is scored, all adapters that
        the posterior would gate are open.
        """
        needed = self.hyper.gate == "relevance" or (self.scored and not self.trail.learning)
        return needed and len(self.normal) > 0

    @property
    def looks(self) -> bool:
        """Whether a pass needs the sample's feature."""
        return self.judges or self.trail.collect is not None

    @property
    def idle(self) -> bool:
        return not self.looks and not self.trail.learning

    # ---- forward -----------------------------------------------------------------------------

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        given = {"q": q, "k": k, "v": v}
        for target in self.orthogonal.keys() - {"v"}:  # the read-out needs q and k; v is served in `attend`
            adapter = self.orthogonal[target]
            given[target] = given[target] + F.linear(F.linear(x, adapter.down), adapter.up)
        return given["q"], given["k"], given["v"]

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        gates = self.look(x, q, k)
        given = {"q": q, "k": k, "v": v}
        for target, bank in self.banks.items():
            down, up = bank.down, bank.up
            if learnt := self.learnt(target):  # one pair of products serves all
                down = torch.cat([down, *(adapter.down for adapter in learnt)])
                up = torch.cat([up, *(adapter.up for adapter in learnt)], 1)
            if len(down):
                change = F.linear(self.scaled(F.linear(x, down), gates), up)
                given[target] = given[target] + change.view(len(x), -1, *q.shape[1::2]).transpose(1, 2)
        return given["q"], given["k"], given["v"]

    def learnt(self, target: str) -> list[Adapter]:
        """The adapters in training that `attend` adds to a projection."""
        parts = [self.residual, self.orthogonal] if target == "v" else [self.residual]
        return [part[target] for part in parts if target in part]

    def scaled(self, z: Tensor, gates: Tensor | None) -> Tensor:
        """z (B, N, n r), the r columns of each adapter times its gate (B, n); those without are open."""
        if gates is None:
            return z
        by_experience = z.view(*z.shape[:2], -1, self.hyper.rank)
        gates = F.pad(gates, (0, by_experience.shape[2] - gates.shape[1]), value=1.0)
        return torch.flatten(by_experience * gates[:, None, :, None].to(z.dtype), 2)

    @torch.no_grad()
    def look(self, x: Tensor, q: Tensor, k: Tensor) -> Tensor | None:
        """Read the sample's feature, where it is needed; return the gates (B, n), None for all open."""
        if not self.looks:
            return None
        rows = features(x, q, k, self.hyper.feature)
        if self.trail.collect is not None:
            self.trail.collect(self.index, rows)
        if not self.judges:
            return None
        e = relevance(rows, self.basis, self.member)
        if self.scored and not self.trail.learning:
            self.trail.relevance[self.index] = e
            self.trail.score[self.index] = self.total_score(e)
        gates = self.gates(e)
        if gates is not None:
            self.trail.gates[self.index] = gates
        return gates

    def total_score(self, e: Tensor) -> Tensor:
        """Sum of the scores (B, t) of the scored blocks so far, this one included."""
        here = identity.scores(e, self.usual, self.hyper.score)
        return here if self.index == self.first else self.trail.score[self.index - 1] + here

    def gates(self, e: Tensor) -> Tensor | None:
        """g (B, n) of the n finished experiences' residual adapters; None where all are open."""
        if self.hyper.gate == "relevance":
            known = e[:, : len(self.normal)]
            gates = (known + TINY) / (self.normal + TINY)  # open where there is nothing to see
            return gates.clamp(max=1.0)
        if not self.gated:
            return None
        blocks = self.index - self.first + 1
        pi = identity.softmax_posterior(self.trail.score[self.index], self.hyper.tau * blocks)
        return 1 - (pi.cumsum(1) - pi)

    # ---- an experience -----------------------------------------------------------------------

    def begin(self, own: Tensor) -> None:
        """Add the adapters of an experience whose own bases are `own` (D, k)."""
        self.own = own
        taken = torch.cat([self.basis.double(), own], 1) if self.hyper.exclude_own else self.basis
        if self.hyper.adapters != "residual":
            free = complement(taken)
            for target in self.hyper.targets:
                self.orthogonal[target] = Adapter(free, self.hyper.rank)
        if self.hyper.adapters != "orthogonal":
            for target in self.hyper.targets:
                self.residual[target] = Adapter(self.inside(own), self.hyper.rank)

    def inside(self, own: Tensor) -> Tensor:
        """The bases (D, k) that the residual adapter trains in."""
        if self.hyper.bases == "own" or self.basis.shape[1] == 0:
            return own
        return self.basis if self.hyper.bases == "old" else self.basis[:, self.member[:, -1] > 0]

    def remember(self, m: Tensor, threshold: float, most: int) -> float:
        """Take the experience's bases in, with what its trained features need besides; the share held."""
        before = self.basis
        with_own = joined(before, self.own)
        more = growth(with_own, m, threshold, at_most=max(most - self.own.shape[1], 0))
        basis = joined(with_own, more)
        added = basis.shape[1] - before.shape[1]
        grown = F.pad(self.member, (0, 1, 0, added))
        grown[before.shape[1] :, -1] = 1.0
        self.member = grown
        self.basis = basis.float()
        return captured(basis, m)

    def normalise(self, e: Tensor) -> None:
        """Keep what is usual for the experience's own images, whose relevance is e (n, t)."""
        mean = identity.evidence(e, self.hyper.score)[:, -1].mean()
        quantile = e[:, -1].quantile(self.hyper.gate_quantile)
        self.usual = torch.cat([self.usual, mean[None]])
        self.normal = torch.cat([self.normal, quantile[None]])

    def finish(self, qkv: nn.Linear) -> None:
        """Merge what is always open into the weight, freeze the rest."""
        for target, adapter in self.orthogonal.items():
            merge(qkv, target, adapter.up, adapter.down)
        for target, adapter in self.residual.items():
            if self.gated:
                self.banks[target].add(adapter)
            else:
                merge(qkv, target, adapter.up, adapter.down)
        self.orthogonal, self.residual = by_target({}), by_target({})
        del self.own


class CalibratedHead(ClassHead):
    """Adds the log posterior of a class's experience to its logit, outside training."""

    def __init__(self, features: int, init: HeadInit, hyper: DualLoraHyper, trail: Trail) -> None:
        super().__init__(features, init)
        self.hyper, self.trail = hyper, trail
        self.posterior: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, 1 + largest class id seen)."""
        logits = super().forward(x)
        if self.trail.learning or self.hyper.calibration == "none":
            return logits
        hyper, last = self.hyper, max(self.trail.score)
        s = self.trail.score[last] / len(self.trail.score)
        self.posterior = identity.posterior(s, hyper.calibration, hyper.tau, hyper.theta)
        weights = identity.log_weights(self.posterior, hyper.calibration, hyper.beta, hyper.certain)
        return logits + weights[:, self.experience_of]


@register("duallora")
class DualLora(Method):
    """Orthogonal and residual adapters, gated by sample; logits calibrated by the task posterior."""

    Hyper = DualLoraHyper
    diagnostic_help: ClassVar = {
        "subspace_size": "dimension of the space of class-token features that all bases span",
        "bases_added": "directions the experience added to it",
        "captured_energy": "share of the energy of the experience's features, after training, that it holds",
        "gate_own": "mean gate of a test image's own experience; 1 in a block without gates",
        "gate_earlier": "mean gate of the experiences before it, in place when it was learnt",
        "gate_later": "mean gate of the experiences after it, unknown when it was learnt",
        "task_identity_accuracy": "share of test images whose experience has the largest posterior",
        "task_confidence": "mean confidence 1 - H(posterior) / log t over test images",
    }

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.tally: dict[str, list[Tensor]] = {}

    # ---- structure ---------------------------------------------------------------------------

    @classmethod
    def paper(cls, benchmark: str) -> dict[str, Any]:
        """InfLoRA's recipe, a choice of ours: the paper's own is not known to us."""
        return InfLora.paper(benchmark)

    @classmethod
    def paper_options(cls, benchmark: str) -> dict[str, Any]:
        """InfLoRA's learning rate; the rest of its recipe is in `paper`."""
        return {"lr": InfLora.paper_options(benchmark)["lr"]}

    def make_head(self, model: VisionTransformer) -> ClassHead:
        self.trail = Trail()
        return CalibratedHead(model.num_features, self.head_init, self.hyper, self.trail)

    def adapt(self, model: VisionTransformer) -> None:
        self._check(model)
        self.attentions = open_seams(model)
        self.plugs = []
        first = len(self.attentions) - max(1, round(self.hyper.score_depth * len(self.attentions)))
        for i, attention in enumerate(self.attentions):
            plug = DualPlug(i, first, model.embed_dim, self.hyper, self.trail)
            attention.plug = plug
            self.plugs.append(plug)

    def _check(self, model: VisionTransformer) -> None:
        check_rank(self.name, self.hyper.rank, model)
        if model.cls_token is None:
            raise UsageError("duallora reads the class token; use a backbone that has one")
        if self.hyper.targets != "v" and not isinstance(model.blocks[0].attn.q_norm, nn.Identity):
            raise UsageError(
                f"duallora.targets is '{self.hyper.targets}', but this backbone normalises q and k; legal: v"
            )

    def owns(self, name: str) -> bool:
        """The weights of the projections too: orthogonal adapters are merged into them."""
        return super().owns(name) or name.endswith("attn.qkv.weight")

    def merge(self, model: VisionTransformer) -> bool:
        """Nothing is left to do: what no gate scales is merged at the end of its experience."""
        return all(cast(DualPlug, attention.plug).idle for attention in open_seams(model))

    def restore(self, model: VisionTransformer, state: Mapping[str, Tensor]) -> None:
        super().restore(model, state)
        for plug in self.plugs:
            kept = self.hyper.rank * len(plug.normal) if plug.gated else 0
            expected = 0 if self.hyper.adapters == "orthogonal" else kept
            found = {len(bank.down) for bank in plug.banks.values()}
            if found != {expected}:
                raise UsageError(
                    f"the state keeps {sorted(found)} rows of residual adapters in block {plug.index}, these "
                    f"options {expected}; restore it with the rank, gate and adapters it was learnt with"
                )

    # ---- an experience -----------------------------------------------------------------------

    def begin(self, strategy: Any) -> None:
        self._check_room(strategy.experience)
        threshold = self.threshold(strategy.experience)
        for plug, m in zip(self.plugs, self.energies(strategy), strict=True):
            room = self.room(plug, strategy.experience)
            plug.begin(growth(plug.basis, m, threshold, at_least=self.hyper.rank, at_most=room))
        self.trail.learning = True

    def end(self, strategy: Any) -> None:
        threshold = self.threshold(strategy.experience)
        before = [plug.basis.shape[1] for plug in self.plugs]
        held = [
            plug.remember(m, threshold, self.room(plug, strategy.experience))
            for plug, m in zip(self.plugs, self.energies(strategy), strict=True)
        ]
        for plug, e in zip(self.plugs, self.own_relevance(strategy), strict=True):
            plug.normalise(e)
        for plug, attention in zip(self.plugs, self.attentions, strict=True):
            plug.finish(attention.qkv)
        self.trail.learning = False
        self.tally = {}
        sizes = [plug.basis.shape[1] for plug in self.plugs]
        self.found = {
            "subspace_size": [float(size) for size in sizes],
            "bases_added": [float(now - then) for now, then in zip(sizes, before, strict=True)],
            "captured_energy": held,
        }

    def threshold(self, experience: Any) -> float:
        """Share of the energy that bases are to hold once the experience is over."""
        done, of = experience.current_experience, len(experience.origin_stream)
        return rising(self.hyper.lamb, self.hyper.lame, done, of)

    def room(self, plug: DualPlug, experience: Any) -> int:
        """How many bases the experience may add: what is left, less `rank` for each one to come."""
        width, taken = plug.basis.shape
        rank: int = self.hyper.rank
        to_come: int = len(experience.origin_stream) - experience.current_experience - 1
        return max(int(self.hyper.capacity * width) - taken - rank * to_come, rank)

    def _check_room(self, experience: Any) -> None:
        of, width = len(experience.origin_stream), self.plugs[0].basis.shape[0]
        if self.hyper.rank * of > width:
            raise UsageError(
                f"duallora.rank is {self.hyper.rank}: {of} experiences need {self.hyper.rank * of} "
                f"directions and the backbone is {width} wide; legal: at most {width // of}"
            )

    # ---- statistics --------------------------------------------------------------------------

    def energies(self, strategy: Any) -> list[Tensor]:
        """The energy matrix of every block's feature over the experience's training images."""
        moments = [no_inputs(plug.basis.shape[0], strategy.device) for plug in self.plugs]

        def see(i: int, rows: Tensor) -> None:
            moments[i] = moments[i].plus(rows)

        self.collect(strategy, see)
        return [energy_matrix(moment.mean, self.hyper.energy) for moment in moments]

    def own_relevance(self, strategy: Any) -> list[Tensor]:
        """The relevance (n, t) of the experience's n training images in every block."""
        seen: list[list[Tensor]] = [[] for _ in self.plugs]

        def see(i: int, rows: Tensor) -> None:
            seen[i].append(relevance(rows, self.plugs[i].basis, self.plugs[i].member))

        self.collect(strategy, see)
        return [torch.cat(batches) for batches in seen]

    def collect(self, strategy: Any, see: Callable[[int, Tensor], None]) -> None:
        """One pass over the experience's training images; `see(i, rows)` gets block i's features."""
        self.trail.collect = see
        try:
            feature_pass(strategy, clean_batches(strategy))
        finally:
            self.trail.collect = None

    # ---- what users ask ----------------------------------------------------------------------

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.tally = defaultdict(list)

    def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        head = strategy.model.head
        truth = head.experience_of[strategy.mb_y][:, None]
        if self.trail.gates and not self.trail.learning:
            always_open = torch.ones_like(next(iter(self.trail.gates.values())))
            by_block = [self.trail.gates.get(plug.index, always_open) for plug in self.plugs]
            gates = torch.stack(by_block)  # (L, B, t)
            columns = torch.arange(gates.shape[2], device=truth.device)
            for name, mask in GATES.items():
                self.tally[name].append(gates[:, mask(columns, truth)])
        if head.posterior is not None and not self.trail.learning:
            self.tally["task_identity_accuracy"].append((head.posterior.argmax(1) == truth[:, 0]).float())
            self.tally["task_confidence"].append(identity.confidence(head.posterior))

    def diagnostics(self) -> dict[str, float | list[float] | None]:
        tested = {name: torch.cat(batches, -1) for name, batches in self.tally.items()}
        return self.found | {name: t.mean(-1).tolist() for name, t in tested.items() if t.numel()}


def features(x: Tensor, q: Tensor, k: Tensor, feature: Feature) -> Tensor:
    """Rows (B, R, D) that stand for a sample in a block: R heads, 1 or N tokens.

    Args:
        x: (B, N, D), the block's normalised input; token 0 is the class token.
        q, k: (B, H, N, Dh).
    """
    if feature == "all_tokens":
        return x
    if feature == "cls_in":
        return x[:, :1]
    weights = torch.softmax(q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
    return torch.matmul(weights.squeeze(2).to(x.dtype), x)


def relevance(rows: Tensor, basis: Tensor, member: Tensor) -> Tensor:
    """e (B, t): share of the energy of rows (B, R, D) that each experience's columns of the basis hold.

    `basis`: (D, m), orthonormal; `member`: (m, t), 1 where a column belongs to an experience.
    """
    held = (rows @ basis).float().square().sum(1) @ member
    share: Tensor = held / rows.float().square().sum((1, 2)).clamp_min(TINY)[:, None]
    return share
