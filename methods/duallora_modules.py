"""DualLoRA's modules: adapters, gates and the calibrated classifier (see `methods.duallora`).

Shapes: B images, N tokens, D width, H heads, Dh = D / H; r rank of an adapter; t experiences learnt, n of
them with residual adapters; m directions of all bases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods import identity
from methods.head import ClassHead, HeadInit
from methods.identity import TINY
from methods.lora import merge
from methods.passes import in_full_precision
from methods.subspace import ROW_NORM, append_basis, captured, complement, new_directions
from methods.vit import QKV, Plug

if TYPE_CHECKING:
    from methods.duallora import DualLoraHyper

Feature = Literal["cls_attn", "cls_in", "all_tokens"]

M = TypeVar("M", bound=nn.Module)


class ForwardContext:
    """What the blocks pass on to later blocks and to the classifier during one forward pass.

    Attributes:
        learning: whether an experience is being learnt: its adapters are open, nothing is calibrated.
        collect: called with (block, features (B, R, D)) during a pass for statistics; None in any other pass.
        relevance: by block, the relevance (B, t) of each experience.
        score: by block, the sum (B, t) of the scores of this block and those before it that are read.
        gates: by block, the gates (B, n).
    """

    def __init__(self) -> None:
        self.learning = False
        self.collect: Callable[[int, Tensor], None] | None = None
        self.relevance: dict[int, Tensor] = {}
        self.score: dict[int, Tensor] = {}
        self.gates: dict[int, Tensor] = {}

    def total_score(self, first: int, last: int) -> Tensor:
        """Sum (B, t) of the scores of the blocks from `first` to `last`."""
        before = self.score.get(first - 1)
        return self.score[last] if before is None else self.score[last] - before

    def mean_score(self, first: int, last: int) -> Tensor:
        """Mean (B, t) of the scores of the blocks from `first` to `last`."""
        return self.total_score(first, last) / (last - first + 1)


class Adapter(nn.Module):
    """B a P with P = S S^T: a low-rank map whose row space lies in the span of S (D, k) by construction.

    Zero at first. a (r, D) is drawn uniformly, so that the rows of A = a P have norm `ROW_NORM` on average. a
    is not stored in the coordinates of S, because Adam's steps would then depend on which basis of the
    subspace was found. P (D, D) is stored and not S, so that a step has the same shapes in every block and
    experience: libraries compile a kernel for each shape that they meet, and keep it.
    """

    projector: Tensor

    def __init__(self, basis: Tensor, rank: int) -> None:
        super().__init__()
        width, k = basis.shape
        self.register_buffer("projector", (basis.double() @ basis.double().T).float())
        self.free = nn.Parameter(torch.empty(rank, width, device=basis.device))
        self.up = nn.Parameter(torch.zeros(width, rank, device=basis.device))
        bound = math.sqrt(3) * ROW_NORM / math.sqrt(max(k, 1))
        nn.init.uniform_(self.free, -bound, bound)

    @property
    def down(self) -> Tensor:
        """A = a P, (r, D), without mixed precision: it would leave the span of S."""
        with in_full_precision(self.free.device.type):
            return self.free @ self.projector


class Bank(nn.Module):
    """Residual adapters of finished experiences, stacked: `down` (n r, D), `up` (D, n r)."""

    down: Tensor
    up: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("down", torch.zeros(0, width))
        self.register_buffer("up", torch.zeros(width, 0))

    def add(self, adapter: Adapter) -> None:
        """Append an adapter as it is now."""
        self.down = torch.cat([self.down, adapter.down.detach()])
        self.up = torch.cat([self.up, adapter.up.detach()], 1)


def by_target(parts: dict[str, M]) -> dict[str, M]:
    """The modules by the projection they change, registered with the module they are assigned to."""
    return cast(dict[str, M], nn.ModuleDict(parts))


class DualPlug(Plug):
    """Both adapters of one block, the bases of all experiences, and the gates.

    Args:
        index: of the block, from 0.
        first_scored: first block whose scores calibrate the logits.
        first_gated: first block with gates, if there are any.
        width: D.
        context: shared by all blocks and the classifier.
    """

    basis: Tensor  # (D, m), orthonormal: [S_1 | ... | S_t]
    basis_owner: Tensor  # (m, t), 1 where a column belongs to an experience, else 0
    mean_evidence: Tensor  # (t,), mean evidence of an experience's own training images
    gate_threshold: (
        Tensor  # (t,), relevance from which its gate is fully open: a quantile over the same images
    )

    def __init__(
        self,
        index: int,
        first_scored: int,
        first_gated: int,
        width: int,
        hyper: DualLoraHyper,
        context: ForwardContext,
    ) -> None:
        super().__init__()
        self.index, self.first_scored, self.first_gated = index, first_scored, first_gated
        self.hyper, self.context = hyper, context
        self.register_buffer("basis", torch.zeros(width, 0))
        self.register_buffer("basis_owner", torch.zeros(0, 0))
        self.register_buffer("mean_evidence", torch.zeros(0))
        self.register_buffer("gate_threshold", torch.zeros(0))
        self.banks = by_target({target: Bank(width) for target in hyper.targets})
        self.orthogonal: dict[str, Adapter] = by_target({})
        self.residual: dict[str, Adapter] = by_target({})
        #: The projections' weight (3D, D) as it was before `open`; None if it is not open.
        self.shut_weight: Tensor | None = None

    # ---- what a pass needs -------------------------------------------------------------------

    @property
    def is_scored(self) -> bool:
        """Whether the block's scores are read: by the gates from here on, or to calibrate the logits."""
        return self.calibrates or (self.hyper.gate == "posterior" and self.is_gated)

    @property
    def calibrates(self) -> bool:
        """Whether the block's scores calibrate the logits."""
        return self.hyper.calibration != "none" and self.index >= self.first_scored

    @property
    def is_gated(self) -> bool:
        """Whether residual adapters are scaled by sample; they are merged otherwise."""
        return self.hyper.gate != "none" and self.index >= self.first_gated

    @property
    def needs_relevance(self) -> bool:
        """Whether a pass needs the samples' relevance.

        While an experience is learnt it is known to be the newest: nothing is scored, and all adapters that
        the posterior would gate are open.
        """
        own = self.hyper.gate == "relevance" and self.is_gated
        used = own or (self.is_scored and not self.context.learning)
        return used and len(self.gate_threshold) > 0

    @property
    def needs_features(self) -> bool:
        """Whether a pass needs the samples' features."""
        return self.needs_relevance or self.context.collect is not None

    @property
    def idle(self) -> bool:
        return not self.needs_features and not self.context.learning

    # ---- forward -----------------------------------------------------------------------------

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        projections = {"q": q, "k": k, "v": v}
        for target in self.orthogonal.keys() - {"v"}:  # the read-out needs q and k; `attend` changes v
            adapter = self.orthogonal[target]
            projections[target] = projections[target] + F.linear(F.linear(x, adapter.down), adapter.up)
        return projections["q"], projections["k"], projections["v"]

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        gates = self.read_gates(x, q, k)
        projections = {"q": q, "k": k, "v": v}
        for target in self.banks:
            if parts := self.adapters(target):  # stacked: two matrix products serve all of them
                down, up = torch.cat([part.down for part in parts]), torch.cat([part.up for part in parts], 1)
                change = F.linear(self.scale(F.linear(x, down), gates), up)
                heads = change.view(len(x), -1, *q.shape[1::2]).transpose(1, 2)
                projections[target] = projections[target] + heads
        return projections["q"], projections["k"], projections["v"]

    def adapters(self, target: str) -> list[Adapter | Bank]:
        """The adapters that `attend` adds to the projection `target`, finished ones first."""
        bank, merged = self.banks[target], target == "v" and self.shut_weight is not None
        finished = [bank] if len(bank.down) and not merged else []
        parts = [self.residual, self.orthogonal] if target == "v" else [self.residual]
        return [*finished, *(part[target] for part in parts if target in part)]

    def scale(self, z: Tensor, gates: Tensor | None) -> Tensor:
        """z (B, N, j r), the outputs of j adapters' `down`, with the r columns of each times its gate (B, n).

        Adapters beyond the n gates are open, all of them if `gates` is None.
        """
        if gates is None:
            return z
        by_experience = z.view(*z.shape[:2], -1, self.hyper.rank)
        gates = F.pad(gates, (0, by_experience.shape[2] - gates.shape[1]), value=1.0)
        return torch.flatten(by_experience * gates[:, None, :, None].to(z.dtype), 2)

    @torch.no_grad()
    def read_gates(self, x: Tensor, q: Tensor, k: Tensor) -> Tensor | None:
        """The gates (B, n), None if all are open. Leaves relevance, scores and gates in the context."""
        if not self.needs_features:
            return None
        rows = features(x, q, k, self.hyper.feature)
        if self.context.collect is not None:
            self.context.collect(self.index, rows)
        if not self.needs_relevance:
            return None
        e = relevance(rows, self.basis, self.basis_owner)
        if self.is_scored and not self.context.learning:
            self.context.relevance[self.index] = e
            self.context.score[self.index] = self.total_score(e)
        gates = self.gates(e)
        if gates is not None:
            self.context.gates[self.index] = gates
        return gates

    def total_score(self, e: Tensor) -> Tensor:
        """Sum (B, t) of the scores of the blocks read up to this one, whose relevance is e (B, t)."""
        score = identity.scores(e, self.mean_evidence, self.hyper.score)
        before = self.context.score.get(self.index - 1)
        return score if before is None else before + score

    def gates(self, e: Tensor) -> Tensor | None:
        """Gates (B, n) of the finished experiences for the relevance e (B, t); None if all are open."""
        if not self.is_gated:
            return None
        if self.hyper.gate == "relevance":
            finished = e[:, : len(self.gate_threshold)]
            gates = (finished + TINY) / (self.gate_threshold + TINY)  # open where both are zero
            return gates.clamp(max=1.0)
        s = self.context.mean_score(self.first_gated, self.index)
        pi = identity.posterior(s, self.hyper.calibration, self.hyper.tau, self.hyper.theta)
        return 1 - (pi.cumsum(1) - pi)

    # ---- an experience -----------------------------------------------------------------------

    def begin(self, own: Tensor, qkv: nn.Linear) -> None:
        """Add the adapters of an experience with the new bases `own` (D, k) to the projections `qkv`."""
        self.own = own
        self.open(qkv)
        taken = torch.cat([self.basis.double(), own], 1) if self.hyper.exclude_own else self.basis
        if self.hyper.adapters != "residual":
            free = complement(taken)
            for target in self.hyper.targets:
                self.orthogonal[target] = Adapter(free, self.hyper.rank)
        if self.hyper.adapters != "orthogonal":
            for target in self.hyper.targets:
                self.residual[target] = Adapter(self.residual_basis(own), self.hyper.rank)

    def residual_basis(self, own: Tensor) -> Tensor:
        """The basis (D, k) that the residual adapter trains in.

        Its own if it will be always on, because it must not change what earlier experiences see; otherwise
        by the option `bases`.
        """
        if self.hyper.bases == "own" or not self.is_gated or self.basis.shape[1] == 0:
            return own
        return self.basis if self.hyper.bases == "old" else self.basis[:, self.basis_owner[:, -1] > 0]

    def remember(self, m: Tensor, threshold: float, at_most: int) -> float:
        """Append the experience's bases, extended until all bases hold the share `threshold` of the energy.

        Args:
            m: energy matrix (D, D), float64, of the features after training.
            at_most: bound on the number of directions that the experience adds in all.

        Returns:
            The share of the energy that all bases hold.
        """
        before = self.basis
        with_own = append_basis(before, self.own)
        more = new_directions(with_own, m, threshold, at_most=max(at_most - self.own.shape[1], 0))
        basis = append_basis(with_own, more)
        added = basis.shape[1] - before.shape[1]
        owner = F.pad(self.basis_owner, (0, 1, 0, added))
        owner[before.shape[1] :, -1] = 1.0
        self.basis_owner = owner
        self.basis = basis.float()
        return captured(basis, m)

    def store_statistics(self, e: Tensor) -> None:
        """Store mean evidence and gate threshold by the relevance e (n, t) of the experience's images."""
        mean = identity.evidence(e, self.hyper.score)[:, -1].mean()
        quantile = e[:, -1].quantile(self.hyper.gate_quantile)
        self.mean_evidence = torch.cat([self.mean_evidence, mean[None]])
        self.gate_threshold = torch.cat([self.gate_threshold, quantile[None]])

    def open(self, qkv: nn.Linear) -> None:
        """Merge the finished adapters of v into the weight (3D, D) until `shut`, if all images open them.

        A step then takes the same time, and products of the same shapes, in every experience. Those of q and
        k stay outside: the read-out needs q and k without them.
        """
        self.shut(qkv)  # an experience that was broken off
        if self.hyper.gate == "posterior" and "v" in self.banks and len(self.banks["v"].down):
            self.shut_weight = qkv.weight.detach().clone()
            merge(qkv, "v", self.banks["v"].up, self.banks["v"].down)

    @torch.no_grad()
    def shut(self, qkv: nn.Linear) -> None:
        """Undo `open`, bit for bit."""
        if self.shut_weight is not None:
            qkv.weight.copy_(self.shut_weight)
            self.shut_weight = None

    def finish(self, qkv: nn.Linear) -> None:
        """Merge adapters without gates into the weight (3D, D); move those with gates to the banks."""
        self.shut(qkv)
        for target, adapter in self.orthogonal.items():
            merge(qkv, target, adapter.up, adapter.down)
        for target, adapter in self.residual.items():
            if self.is_gated:
                self.banks[target].add(adapter)
            else:
                merge(qkv, target, adapter.up, adapter.down)
        self.orthogonal, self.residual = by_target({}), by_target({})
        del self.own


class CalibratedHead(ClassHead):
    """Adds, outside training, the log posterior of a class's experience to its logit.

    Where all experiences share their classes, the term would be the same for all classes, and is left out.

    Attributes:
        posterior: (B, t), of the last pass that was calibrated.
    """

    def __init__(
        self,
        features: int,
        init: HeadInit,
        hyper: DualLoraHyper,
        context: ForwardContext,
        first_scored: int,
    ) -> None:
        super().__init__(features, init)
        self.hyper, self.context, self.first_scored = hyper, context, first_scored
        self.posterior: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, 1 + largest class id seen)."""
        logits = super().forward(x)
        if self.context.learning or self.hyper.calibration == "none":
            return logits
        hyper = self.hyper
        s = self.context.mean_score(self.first_scored, max(self.context.score))
        self.posterior = identity.posterior(s, hyper.calibration, hyper.tau, hyper.theta)
        if len(self.heads) == 1:
            return logits
        weights = identity.log_weights(self.posterior, hyper.calibration, hyper.beta, hyper.certain)
        return logits + weights[:, self.experience_of]


def features(x: Tensor, q: Tensor, k: Tensor, feature: Feature) -> Tensor:
    """The features (B, R, D) of a sample in a block: R heads, one token, or N tokens.

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


def relevance(rows: Tensor, basis: Tensor, basis_owner: Tensor) -> Tensor:
    """e (B, t): share of the energy of the features (B, R, D) that each experience's bases hold.

    Args:
        basis: (D, m), orthonormal.
        basis_owner: (m, t), 1 where a column belongs to an experience, else 0.
    """
    with in_full_precision(rows.device.type):  # the shapes differ by block: no kernel is compiled for each
        rows = rows.to(basis.dtype)
        held = (rows @ basis).float().square().sum(1) @ basis_owner
        share: Tensor = held / rows.float().square().sum((1, 2)).clamp_min(TINY)[:, None]
    return share
