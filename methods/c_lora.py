"""C-LoRA (arXiv 2502.17920, 2025): one low-rank map for all tasks, updated through a routing matrix.

**Not a reproduction.** The paper's text and code were not available to us: only its abstract and secondary
notes on it were. None of its numbers is known to us, and no number that this gives is the authors' result.
Results called "C-LoRA" in other papers' tables are of another method (Smith et al., arXiv 2304.06027); CLoRA
(arXiv 2512.24603) is a third one.

Confirmed by the abstract: one LoRA module serves all experiences, a learnable routing matrix manages its
updates, and orthogonality limits the interference between experiences. By the secondary notes: the change of
a projection's weight is A R B, with R = R_old + R_delta; R_old is frozen, and R_delta starts near zero in
every experience; the old path keeps its value and gives no gradient to A and B; the loss has a penalty, the
squared Frobenius norm of (old basis)^T R_delta, of weight 0.01. So, with G the gradient of the weight,

    dL/dA = G B^T R_delta^T,    dL/dR_delta = A^T G B^T,    dL/dB = R_delta^T A^T G.

The gradients of A and B are small while R_delta is small, and so are the steps of plain gradient descent. The
optimiser here is Adam, whose steps do not depend on the size of the gradient: with it, small gradients
protect nothing.

Inferred, and therefore options: what "gives no gradient" means (`old_path`), whether A and B go on learning
(`factors`), and the old basis (`penalty`), which has no legal shape as it is quoted.

Shapes: D width of the backbone, r rank, n projections that are adapted; A (D, r), B (r, D), R (r, r).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.base import Method
from methods.errors import UsageError
from methods.hyper import STRICT, Hyper, hyper
from methods.lora import check_rank, merge
from methods.registry import register
from methods.strategy import StrategyLike
from methods.vit import QKV, Plug, open_seams, with_changes

OldPath = Literal["merged", "live", "full"]
Penalty = Literal["route", "basis", "output"]
Factors = Literal["train", "frozen"]

#: Share of the energy of R_old, the squares of its singular values, that `penalty=basis` keeps.
BASIS_ENERGY = 0.95


@dataclass(frozen=True, config=STRICT)
class CLoraHyper(Hyper):
    """Hyper-parameters of C-LoRA (arXiv 2502.17920)."""

    lr: float = hyper(2e-3, "learning rate of Adam", source="chosen on validation, docs/defaults.md", gt=0)
    rank: int = hyper(10, "rank of each low-rank map", source="as finetune's, so that sizes match", ge=1)
    targets: str = hyper(
        "kv",
        "projections that are adapted, some of q, k, v",
        source="as finetune's; the paper's are not known to us",
        pattern="^q?k?v?$",
        min_length=1,
    )
    penalty_weight: float = hyper(
        0.01,
        "weight of the orthogonality penalty, summed over projections, in the loss",
        source="a secondary note on arXiv 2502.17920",
        ge=0,
    )
    penalty: Penalty = hyper(
        "route",
        "what is to be orthogonal: R_delta to R_old (route), R_delta to the left singular vectors that hold "
        f"{BASIS_ENERGY:.0%} of R_old's energy (basis), or A R_delta to A R_old (output)",
        source="ours: the notes write (old basis)^T R_delta, which has no legal shape with A as the basis",
    )
    old_path: OldPath = hyper(
        "merged",
        "what was learnt before: merged into the weight (merged), or kept as A R_old B with the A and B of "
        "today, which it gives no gradient to (live) or an ordinary one (full)",
        source="ours: only merged keeps the old path; live is the secondary notes' literal description",
    )
    factors: Factors = hyper(
        "train",
        "whether A and B learn in every experience (train), or in the first one only (frozen)",
        source="train: the gradients in secondary notes on arXiv 2502.17920; frozen: ours, an ablation",
    )


# ---- modules -------------------------------------------------------------------------------------


class Routed(nn.Module):
    """x -> x B^T R_delta^T A^T, (..., D) -> (..., D): what is learnt anew; the old path is in the weight.

    It starts at zero because R_delta does. A and B do not, or no gradient would ever differ from zero.
    """

    old_route: Tensor

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))  # B
        self.up = nn.Parameter(torch.empty(width, rank))  # A
        self.route = nn.Parameter(torch.zeros(rank, rank))  # R_delta
        self.register_buffer("old_route", torch.zeros(rank, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.up, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return low_rank(x, self.down, self.route, self.up)

    def unmerged(self) -> Tensor:
        """R (r, r) of the map A R B that is added to the weight at present."""
        return self.route.detach()


class RoutedFull(Routed):
    """x -> x B^T (R_old + R_delta)^T A^T, with the gradient of that."""

    def forward(self, x: Tensor) -> Tensor:
        return low_rank(x, self.down, self.old_route + self.route, self.up)

    def unmerged(self) -> Tensor:
        return self.old_route + self.route.detach()


class RoutedLive(RoutedFull):
    """The same values; A and B get no gradient from the term of R_old, x does."""

    def forward(self, x: Tensor) -> Tensor:
        old = low_rank(x, self.down.detach(), self.old_route, self.up.detach())
        return low_rank(x, self.down, self.route, self.up) + old


def low_rank(x: Tensor, down: Tensor, route: Tensor, up: Tensor) -> Tensor:
    """x B^T R^T A^T."""
    return linear(linear(linear(x, down), route), up)


KINDS: dict[OldPath, type[Routed]] = {"merged": Routed, "live": RoutedLive, "full": RoutedFull}


class RoutedPlug(Plug):
    """Adds a map of the block's input to each projection named in `targets`, e.g. "kv"."""

    def __init__(self, kind: type[Routed], width: int, rank: int, targets: str) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({target: kind(width, rank) for target in targets})

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        return with_changes(q, k, v, self.maps, lambda name: self.maps[name](x))


def merge_into(qkv: nn.Linear, plug: RoutedPlug) -> None:
    """Add what the plug's maps add at present to the weight (3D, D)."""
    for target, each in plug.maps.items():
        assert isinstance(each, Routed)
        merge(qkv, target, each.up.double() @ each.unmerged().double(), each.down)


# ---- the penalty ---------------------------------------------------------------------------------


def anchors(penalty: Penalty, old_routes: Tensor) -> Tensor:
    """What the penalty compares R_delta with, (n, r, r), from R_old (n, r, r); zero where that is zero."""
    return principal_columns(old_routes) if penalty == "basis" else old_routes


def principal_columns(matrices: Tensor) -> Tensor:
    """The left singular vectors that hold `BASIS_ENERGY` of each matrix's energy, and zero for the others."""
    left, values, _ = torch.linalg.svd(matrices.double())
    energy = values.square()
    before = energy.cumsum(-1) - energy
    kept = before < BASIS_ENERGY * energy.sum(-1, keepdim=True)
    basis: Tensor = left * kept.unsqueeze(-2)
    return basis.to(matrices.dtype)


def penalties(penalty: Penalty, anchor: Tensor, maps: Sequence[Routed]) -> Tensor:
    """The penalty of each projection, (n,), without its weight.

    route, basis: ||anchor^T R_delta||^2; output: ||(A R_old)^T A R_delta||^2, without a gradient to A.
    """
    routes = torch.stack([each.route for each in maps])
    if penalty == "output":
        ups = torch.stack([each.up.detach() for each in maps])
        routes = (ups.mT @ ups) @ routes
    overlap: Tensor = anchor.mT @ routes
    return overlap.square().sum((-2, -1))


# ---- the method ----------------------------------------------------------------------------------


@register("c-lora")
class CLora(Method[CLoraHyper]):
    """Trains one routed low-rank map per projection, with a penalty on what is not orthogonal to the old."""

    Hyper = CLoraHyper
    diagnostic_help: ClassVar = {
        "old_path_drift": "how far the experience moved A R_old B, relative to its Frobenius norm before, by "
        "block; zero under old_path=merged, where that product is part of the frozen weight; none in the "
        "first experience, which has no old path",
        "penalty": "orthogonality penalty at the end of the experience, without its weight, by block",
        "route_norm": "Frobenius norm of R_delta at the end of the experience, by block",
    }

    @classmethod
    def check(cls, hyper: CLoraHyper, experiences: int) -> None:
        """Refuse options that leave others without effect."""
        if hyper.factors == "frozen" and hyper.old_path == "live":
            raise UsageError(
                f"{cls.name}.old_path=live keeps the old path's gradient from A and B, which do not learn "
                f"beside an old path under {cls.name}.factors=frozen; set {cls.name}.old_path=full, which "
                f"computes the same then, or {cls.name}.factors=train"
            )
        if hyper.penalty_weight == 0 and hyper.penalty != CLoraHyper().penalty:
            raise UsageError(
                f"{cls.name}.penalty is {hyper.penalty}, but {cls.name}.penalty_weight=0 does not use it; "
                "leave penalty out, or set a weight above 0"
            )

    @classmethod
    def caveats(cls, hyper: CLoraHyper) -> tuple[str, ...]:
        """What is inferred, which method this is not, and what the literal reading does."""
        inferred = (
            f"{cls.name} (arXiv 2502.17920) is built from the paper's abstract and secondary notes: the "
            f"basis of the penalty ({hyper.penalty}), rank, projections, optimiser and the treatment of the "
            f"old path ({hyper.old_path}, factors {hyper.factors}) are inferred; no number of the paper is "
            "known to us"
        )
        collision = (
            "results called C-LoRA in other papers' tables are those of another method (Smith et al., arXiv "
            f"2304.06027), not of {cls.name} (arXiv 2502.17920)"
        )
        live = (
            f"{cls.name}.old_path=live, the literal reading of secondary notes on arXiv 2502.17920, is not a "
            "descent direction: A and B move the old path as well, which their gradient leaves out, so the "
            "loss can rise and the old path move further than in ordinary training"
        )
        return (inferred, collision, live) if hyper.old_path == "live" else (inferred, collision)

    def adapt(self, model: VisionTransformer) -> None:
        check_rank(self.name, self.hyper.rank, model)
        self.attentions, kind = open_seams(model), KINDS[self.hyper.old_path]
        self.plugs = [
            RoutedPlug(kind, model.embed_dim, self.hyper.rank, self.hyper.targets) for _ in self.attentions
        ]
        for attention, plug in zip(self.attentions, self.plugs, strict=True):
            attention.plug = plug
        self.maps = [each for plug in self.plugs for each in plug.maps.values() if isinstance(each, Routed)]

    def owns(self, name: str) -> bool:
        """Under old_path=merged the weights of the projections, too, which change with every experience."""
        merged = self.hyper.old_path == "merged" and name.endswith("attn.qkv.weight")
        return super().owns(name) or merged

    def frozen_after(self, task: int) -> Iterable[str]:
        """Under factors=frozen all A and B, too: they learn in the first experience only."""
        assert self.model is not None
        maps = (name for name, _ in self.model.named_parameters() if ".plug." in name)
        factors = (name for name in maps if not name.endswith(".route"))
        return (*super().frozen_after(task), *(factors if self.hyper.factors == "frozen" else ()))

    def begin(self, strategy: StrategyLike) -> None:
        old_routes = torch.stack([each.old_route for each in self.maps])
        self.has_old = bool(old_routes.any())
        self.anchor = anchors(self.hyper.penalty, old_routes)
        self.before = [(each.up.detach().clone(), each.down.detach().clone()) for each in self.moving()]

    def before_backward(self, strategy: StrategyLike, **kwargs: object) -> None:
        if self.has_old and self.hyper.penalty_weight > 0:
            total = penalties(self.hyper.penalty, self.anchor, self.maps).sum()
            strategy.loss = strategy.loss + self.hyper.penalty_weight * total

    @torch.no_grad()
    def end(self, strategy: StrategyLike) -> None:
        norms = torch.stack([each.route.square().sum() for each in self.maps])
        self._diagnostics = {
            "old_path_drift": self.drift() if self.has_old else None,
            "penalty": self.by_block(penalties(self.hyper.penalty, self.anchor, self.maps)).tolist(),
            "route_norm": self.by_block(norms).sqrt().tolist(),
        }
        for attention, plug in zip(self.attentions, self.plugs, strict=True):
            if self.hyper.old_path == "merged":
                merge_into(attention.qkv, plug)
        for each in self.maps:
            each.old_route += each.route
            each.route.zero_()

    def merge(self, model: VisionTransformer) -> bool:
        """All maps: x W^T + x B^T R^T A^T = x (W + A R B)^T."""
        for attention in open_seams(model):
            if isinstance(attention.plug, RoutedPlug):
                merge_into(attention.qkv, attention.plug)
            attention.plug = None
        return True

    def by_block(self, values: Tensor) -> Tensor:
        """Sums (blocks,) of the values (n,) of a block's projections."""
        return values.reshape(len(self.plugs), -1).sum(1)

    def moving(self) -> list[Routed]:
        """The maps whose old path moves with A and B."""
        return [] if self.hyper.old_path == "merged" else self.maps

    def drift(self) -> list[float]:
        """How far A R_old B has moved since `begin`, by block, relative to its norm then."""
        if not self.before:
            return [0.0 for _ in self.plugs]
        moved, norms = [], []
        for each, (up, down) in zip(self.moving(), self.before, strict=True):
            then, now = (product(a, each.old_route, b) for a, b in ((up, down), (each.up, each.down)))
            moved.append((now - then).square().sum())
            norms.append(then.square().sum())
        ratios = self.by_block(torch.stack(moved)) / self.by_block(torch.stack(norms))
        return [ratio.sqrt().item() for ratio in ratios]


def product(up: Tensor, route: Tensor, down: Tensor) -> Tensor:
    """A R B (D, D), float64."""
    return up.double() @ route.double() @ down.double()
