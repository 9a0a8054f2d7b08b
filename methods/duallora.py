"""DualLoRA: an orthogonal and a residual low-rank adapter, and a dynamic memory (arXiv 2411.00623).

The paper's text and code were not available to us; only its abstracts and secondary notes were. This is an
implementation of what those say, with every gap filled by a named hyper-parameter. No number that it gives is
the authors' result.

Confirmed by the sources: two adapters per frozen weight; the orthogonal one is updated outside the subspace
of earlier experiences, the residual one inside the subspace of experience-specific bases; bases come from
class-token features only; at inference the residual adapter's output is scaled by the similarity between its
bases and the current attention; the same bases estimate the task identity, whose confidence calibrates the
logits; one forward pass.

Inferred, and therefore options: adapted projections (`targets`), ranks, which class-token feature
(`feature`), whose bases the residual adapter uses (`bases`, the sources disagree), how much energy they
hold and their number (`energy`, `lamb`, `lame`, `capacity`, `experience_capacity`), whether the orthogonal
adapter avoids the experience's own bases, too (`exclude_own`), the gate's formula and which blocks have one
(`gate`, `gate_quantile`, `gate_depth`), the score, the posterior and the calibration (`score`,
`score_depth`, `calibration`, `tau`, `beta`, `theta`, `certain`).

The computation in a block, with u (B, N, D) its normalised input and all quantities per block:

    c_h  = softmax(q_0 k^T / sqrt(Dh)) u           the class token's read-out of head h, (B, H, D)
    e_i  = sum_h |S_i^T c_h|^2 / sum_h |c_h|^2      relevance of experience i's bases S_i, (B,)
    v    = W u + B_O A_O u + sum_i g_i(e) B_i A_i u

A_O = a Q Q^T with Q the complement of all earlier bases, and A_i = a_i S S^T with S the bases that the
option `bases` names: the rows lie in their subspaces by construction, with any optimiser. After an experience
B_O A_O is merged into W, its S_i is extended by what training added to the features, and (B_i, A_i, S_i)
never change again.

What holds in every block, for every option: a change of W that no gate scales is zero in all directions
that were stored before its experience. B_O A_O is always on, and trains outside of them. A residual adapter
without a gate (`gate=none`, or a block before the last `gate_depth` of them) is always on as well, and trains
inside S_i, which is orthogonal to all earlier bases. One that trains inside earlier bases always has a gate.
What does not hold: bases are those of the class token, so that the other tokens of earlier images, which
later blocks attend to, are not protected; and a gate is as good as the posterior.

docs/duallora.md has measurements of each part. The modules are in `methods.duallora_modules`.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sized
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods import identity
from methods.base import DiagnosticValue
from methods.duallora_deployed import deploy
from methods.duallora_modules import CalibratedHead, DualPlug, Feature, ForwardContext, relevance
from methods.errors import UsageError
from methods.head import ClassHead, HeadInit
from methods.hyper import STRICT, Hyper, hyper
from methods.identity import Calibration, Score
from methods.inflora import InfLora
from methods.lora import SubspaceLora, check_rank
from methods.passes import clean_batches, feature_pass
from methods.registry import register
from methods.strategy import ExperienceLike, StrategyLike, true_experience
from methods.subspace import Energy, Moment, energy_matrix, new_directions
from methods.vit import open_seams

Gate = Literal["none", "relevance", "posterior"]

#: The gates that each diagnostic averages: (their experiences (t,), a sample's own (B, 1)) -> (B, t), bool.
GATES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
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
        "both", "adapters in use: both, or one of them", source=f"both: {CONFIRMED}; the others are ablations"
    )
    feature: Feature = hyper(
        "cls_attn",
        "features that bases are computed from and compared with: the class token's read-out of every head "
        "(cls_attn), its normalised input (cls_in), the normalised inputs of all tokens (all_tokens)",
        source="class token: a summary of the paper; which of its features: ours",
    )
    bases: Literal["own", "old", "last"] = hyper(
        "old",
        "in a block with gates the residual adapter trains inside the bases that all earlier experiences "
        "added (old), that the last one added (last), or that its own adds (own); without a gate it is "
        "always on, and then inside its own whatever this says",
        source="two notes on the paper disagree; chosen on validation, docs/duallora.md",
    )
    exclude_own: bool = hyper(
        False, "keep the orthogonal adapter out of the experience's own bases, too", source=OURS
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
        "share of the width that all bases may take; `rank` of them are reserved for each experience to come",
        source=CHOSEN,
        gt=0,
        le=1,
    )
    experience_capacity: float = hyper(
        1 / 12,
        "share of the width that the bases of one experience may take, but at least `rank` of them",
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
    gate_depth: float = hyper(
        1.0,
        "share of the blocks, from the last one on, that have gates; in the others adapters are always on",
        source=CHOSEN,
        gt=0,
        le=1,
    )
    gate_quantile: float = hyper(
        0.1,
        "quantile of an experience's own relevance from which its gate is fully open",
        source=OURS,
        gt=0,
        lt=1,
    )
    calibration: Calibration = hyper(
        "softmax",
        "how the task posterior changes the logits: see methods/identity.py",
        source=f"that it does: {CONFIRMED}; formulas: ours",
    )
    score: Score = hyper(
        "remaining",
        "evidence of an experience: its relevance (share), or its part of what others leave (remaining)",
        source=CHOSEN,
    )
    score_depth: float = hyper(
        0.5, "share of the blocks, from the last one on, whose scores are averaged", source=CHOSEN, gt=0, le=1
    )
    tau: float = hyper(0.3, "temperature of the posterior", source=CHOSEN, gt=0)
    beta: float = hyper(1.0, "weight of the log posterior in the logits", source=OURS, ge=0)
    theta: float = hyper(1.0, "score from which calibration=stick regards bases as active", source=OURS)
    certain: float = hyper(
        0.5, "confidence from which calibration=hard masks other experiences", source=OURS, ge=0, le=1
    )


@register("duallora")
class DualLora(SubspaceLora[DualLoraHyper]):
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

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__(head_init=head_init, **options)
        #: Values of the diagnostics of an evaluation, by name, batch by batch.
        self.evaluated: dict[str, list[Tensor]] = {}

    # ---- structure ---------------------------------------------------------------------------

    @classmethod
    def paper(cls, benchmark: str) -> dict[str, object]:
        """InfLoRA's recipe, a choice of ours: that of the paper is not known to us."""
        return InfLora.paper(benchmark)

    @classmethod
    def paper_options(cls, benchmark: str) -> dict[str, object]:
        """InfLoRA's learning rate; the rest of its recipe is in `paper`."""
        return {"lr": InfLora.paper_options(benchmark)["lr"]}

    def make_head(self, model: VisionTransformer) -> ClassHead:
        self.context = ForwardContext()
        scored = first_of_last(self.hyper.score_depth, len(model.blocks))
        return CalibratedHead(model.num_features, self.head_init, self.hyper, self.context, scored)

    def adapt(self, model: VisionTransformer) -> None:
        self._check(model)
        self.attentions = open_seams(model)
        self.plugs = []
        blocks = len(self.attentions)
        scored = first_of_last(self.hyper.score_depth, blocks)
        gated = first_of_last(self.hyper.gate_depth, blocks)
        for i, attention in enumerate(self.attentions):
            plug = DualPlug(i, scored, gated, model.embed_dim, self.hyper, self.context)
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

    def merge(self, model: VisionTransformer) -> bool:
        """Fold what does not depend on the image; adapters with gates stay adapters, but the first one's."""
        return deploy(model, self.hyper)

    def restore(self, model: VisionTransformer, state: Mapping[str, Tensor]) -> None:
        """As `Method.restore`, which accepts any number of rows of residual adapters.

        Raises:
            UsageError: if their number is not that of these hyper-parameters.
        """
        super().restore(model, state)
        for plug in self.plugs:
            gated = self.hyper.rank * len(plug.gate_threshold) if plug.is_gated else 0
            expected = 0 if self.hyper.adapters == "orthogonal" else gated
            rows = {len(bank.down) for bank in plug.banks.values()}
            if rows != {expected}:
                raise UsageError(
                    f"the state keeps {sorted(rows)} rows of residual adapters in block {plug.index}, these "
                    f"options {expected}; restore it with the rank, gate and adapters it was learnt with"
                )

    # ---- an experience -----------------------------------------------------------------------

    def begin(self, strategy: StrategyLike) -> None:
        self._check_width(strategy.experience.origin_stream)
        threshold = self.threshold(strategy.experience)
        for plug, attention, m in zip(self.plugs, self.attentions, self.energies(strategy), strict=True):
            at_most = self.room(plug, strategy.experience)
            own = new_directions(plug.basis, m, threshold, at_least=self.hyper.rank, at_most=at_most)
            plug.begin(own, attention.qkv)
        self.context.learning = True

    def end(self, strategy: StrategyLike) -> None:
        threshold = self.threshold(strategy.experience)
        sizes_before = [plug.basis.shape[1] for plug in self.plugs]
        shares = [
            plug.remember(m, threshold, self.room(plug, strategy.experience))
            for plug, m in zip(self.plugs, self.energies(strategy), strict=True)
        ]
        for plug, e in zip(self.plugs, self.own_relevance(strategy), strict=True):
            plug.store_statistics(e)
        for plug, attention in zip(self.plugs, self.attentions, strict=True):
            plug.finish(attention.qkv)
        self.context.learning = False
        self.evaluated = {}
        sizes = [plug.basis.shape[1] for plug in self.plugs]
        self._diagnostics = {
            "subspace_size": [float(size) for size in sizes],
            "bases_added": [float(now - then) for now, then in zip(sizes, sizes_before, strict=True)],
            "captured_energy": shares,
        }

    def room(self, plug: DualPlug, experience: ExperienceLike) -> int:
        """How many directions the experience may add: those left, less `rank` for each experience to come.

        At most its share, `experience_capacity`, and at least `rank`.
        """
        width, taken = plug.basis.shape
        rank, to_come = self.hyper.rank, len(experience.origin_stream) - experience.current_experience - 1
        left = int(self.hyper.capacity * width) - taken - rank * to_come
        return max(min(left, int(self.hyper.experience_capacity * width)), rank)

    def _check_width(self, stream: Sized) -> None:
        experiences, width = len(stream), self.plugs[0].basis.shape[0]
        if self.hyper.rank * experiences > width:
            raise UsageError(
                f"duallora.rank is {self.hyper.rank}: {experiences} experiences need "
                f"{self.hyper.rank * experiences} directions and the backbone is {width} wide; "
                f"legal: at most {width // experiences}"
            )

    # ---- statistics --------------------------------------------------------------------------

    def energies(self, strategy: StrategyLike) -> list[Tensor]:
        """The energy matrix (D, D) of every block's features over the experience's training images."""
        moments = [Moment.zeros(plug.basis.shape[0], strategy.device) for plug in self.plugs]

        def add(i: int, rows: Tensor) -> None:
            moments[i] = moments[i].plus(rows)

        self.collect(strategy, add)
        return [energy_matrix(moment.mean, self.hyper.energy) for moment in moments]

    def own_relevance(self, strategy: StrategyLike) -> list[Tensor]:
        """The relevance (n, t) of the experience's n training images in every block."""
        batches: list[list[Tensor]] = [[] for _ in self.plugs]

        def append(i: int, rows: Tensor) -> None:
            batches[i].append(relevance(rows, self.plugs[i].basis, self.plugs[i].basis_owner))

        self.collect(strategy, append)
        return [torch.cat(of_block) for of_block in batches]

    def collect(self, strategy: StrategyLike, receive: Callable[[int, Tensor], None]) -> None:
        """Call `receive(i, features (B, R, D))` for every block i in one pass over the training images."""
        self.context.collect = receive
        try:
            feature_pass(strategy, clean_batches(strategy))
        finally:
            self.context.collect = None

    # ---- diagnostics of an evaluation --------------------------------------------------------

    def before_eval(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.evaluated = defaultdict(list)

    def after_eval_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        if self.context.learning:
            return
        head, truth = strategy.model.head, true_experience(strategy)
        learnt = (truth >= 0) & (truth < len(head.tasks))
        if self.context.gates:
            self._evaluate_gates(truth[:, None], learnt)
        if head.posterior is not None:
            posterior = head.posterior[learnt]
            self.evaluated["task_identity_accuracy"].append((posterior.argmax(1) == truth[learnt]).float())
            self.evaluated["task_confidence"].append(identity.confidence(posterior))

    def _evaluate_gates(self, truth: Tensor, learnt: Tensor) -> None:
        """Add the gates of a batch, whose images belong to the experiences `truth` (B, 1); of those that are
        `learnt` (B,) only.
        """
        always_open = torch.ones_like(next(iter(self.context.gates.values())))
        gates = torch.stack(
            [self.context.gates.get(plug.index, always_open) for plug in self.plugs]
        )  # (L, B, t)
        experiences = torch.arange(gates.shape[2], device=truth.device)
        for name, compare in GATES.items():
            self.evaluated[name].append(gates[:, compare(experiences, truth) & learnt[:, None]])

    def diagnostics(self) -> dict[str, DiagnosticValue]:
        values = {name: torch.cat(batches, -1) for name, batches in self.evaluated.items()}
        return self._diagnostics | {name: t.mean(-1).tolist() for name, t in values.items() if t.numel()}


def first_of_last(share: float, blocks: int) -> int:
    """Number, from 0, of the first of the last `share` of the blocks; that is at least one block."""
    return blocks - max(1, round(share * blocks))
