"""DualLoRA as it is deployed: the passes of `methods.duallora_modules` with fewer and larger operations.

What does not depend on the image is folded into the weights. The first experience's gate is 1 for every
image, because the posterior sums to 1, so its adapter is part of W_v. In a block that is scored

- one projection gives q, k, v and the outputs z of all other adapters; its q is scaled by 1 / sqrt(Dh);
- a rotation to the coordinates [S_1 | ... | S_t | complement] gives the energies of all bases and what they
  leave, each as a weighted sum of squares;
- the terms of the scores that all images share are added up over the blocks beforehand;
- the gates of all adapters' columns are one product with the posterior.

Shapes: B images, N tokens, D width, H heads, Dh = D / H; R rows of features; t experiences learnt; c columns
of adapters with gates, r for each experience but the first, up to a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods import identity
from methods.duallora_modules import CalibratedHead, DualPlug, ForwardContext
from methods.identity import TINY
from methods.lora import merge
from methods.passes import in_full_precision
from methods.subspace import complement
from methods.vit import Plug, SeamAttention

if TYPE_CHECKING:
    from methods.duallora import DualLoraHyper

#: The projection's rows are whole cache lines: at other lengths its product takes up to half as long again.
ALIGNED = 16


class Posterior(nn.Module):
    """softmax(mean score / tau) over the blocks from `first` to `last`, (B, t), by the sums of their scores.

    Args:
        shared: (t,), the sum over these blocks of the part of the scores that all images have.
    """

    shared: Tensor

    def __init__(self, first: int, last: int, shared: Tensor, tau: float) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.slope = 1 / (tau * (last - first + 1))
        self.register_buffer("shared", self.slope * shared)

    def forward(self, context: ForwardContext) -> Tensor:
        """(B, t)."""
        total = context.total_score(self.first, self.last)
        return torch.softmax(torch.add(self.shared, total, alpha=self.slope), 1)


class ScoredPlug(Plug):
    """The parts of a block that is scored.

    Args:
        plug: the block's adapters and bases.
        posterior: of the gates; None if nothing is gated.
    """

    rotation: Tensor  # (D, D), rows S_1, ..., S_t, complement
    sums: Tensor  # (3 t, D), the weights of squares: numerators and denominators of scores, and least ones
    least: Tensor  # (3 t,), what is added to them
    spread: Tensor  # (t, c), 1 where an adapter's column is open for an experience
    up: Tensor  # (c, D)
    posterior: Posterior | None

    def __init__(self, plug: DualPlug, posterior: Posterior | None, context: ForwardContext) -> None:
        super().__init__()
        self.index, self.feature, self.context = plug.index, plug.hyper.feature, context
        self.posterior = posterior
        rest = complement(plug.basis)
        self.register_buffer("rotation", torch.cat([plug.basis.double(), rest], 1).T.float().contiguous())
        sums, least = score_sums(plug, rest.shape[1])
        self.register_buffer("sums", sums.float())
        self.register_buffer("least", least.float())
        rank, t = plug.hyper.rank, len(plug.mean_evidence)
        later = torch.ones(t, t - 1, device=rest.device).tril(-1).repeat_interleave(rank, 1)
        self.register_buffer("spread", aligned(later, 1))
        self.register_buffer("up", aligned(plug.banks["v"].up[:, rank:].T, 0).contiguous())

    def gates(self, x: Tensor, q: Tensor, k: Tensor) -> Tensor | None:
        """Add the block's scores to the context; the gates (B, c) of the adapters' columns, None without."""
        rows = self.read(x, q, k)
        with in_full_precision(x.device.type):
            squares = F.linear(rows.float(), self.rotation).square().sum(1)
            scaled, left, least = F.linear(squares, self.sums, self.least).chunk(3, 1)
            before = self.context.score.get(self.index - 1)
            left = torch.maximum(left, least)
            self.context.score[self.index] = (
                scaled / left if before is None else torch.addcdiv(before, scaled, left)
            )
            return None if self.posterior is None else self.posterior(self.context) @ self.spread

    def read(self, x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The features (B, R, D), as `duallora_modules.features` of queries that are scaled already."""
        if self.feature == "all_tokens":
            return x
        if self.feature == "cls_in":
            return x[:, :1]
        weights = torch.softmax(q[:, :, :1] @ k.transpose(-2, -1), -1)
        return torch.bmm(weights.squeeze(2).to(x.dtype), x)


class DeployedAttention(SeamAttention):
    """timm's attention with a `ScoredPlug`, whose columns follow those of v in the projection."""

    plug: ScoredPlug

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        images, tokens, width = x.shape
        projected = self.qkv(x)
        heads = projected[..., : 3 * width].view(images, tokens, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        gates = self.plug.gates(x, q, k)
        if gates is not None:  # v is a part of `projected`
            z = projected[..., 3 * width :] * gates.to(projected.dtype)[:, None]
            v_rows = projected.flatten(0, 1)[:, 2 * width : 3 * width]
            v_rows.addmm_(z.flatten(0, 1), self.plug.up.to(z.dtype))
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DeployedHead(nn.Module):
    """The classifier as one layer with a row for each class id, and the posterior's term if it has one.

    The bias of a class that was not seen yet is minus infinity.
    """

    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    experience_of: Tensor  # (C,)
    posterior: Posterior | None

    def __init__(self, head: CalibratedHead, posterior: Posterior | None, context: ForwardContext) -> None:
        super().__init__()
        self.hyper, self.posterior, self.context = head.hyper, posterior, context
        heads = head.heads
        shape, like = (head.width, head.features), heads[0].weight
        rows, bias = torch.cat([each.weight for each in heads]), torch.cat([each.bias for each in heads])
        columns = head.columns
        self.register_buffer("weight", like.new_zeros(shape).index_copy(0, columns, rows))
        self.register_buffer("bias", like.new_full(shape[:1], -torch.inf).index_copy(0, columns, bias))
        self.register_buffer("experience_of", head.experience_of)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, C)."""
        logits = F.linear(x, self.weight, self.bias)
        if self.posterior is None:
            return logits
        hyper, pi = self.hyper, self.posterior(self.context)
        weights = identity.log_weights(pi, hyper.calibration, hyper.beta, hyper.certain)
        return logits + weights.index_select(1, self.experience_of)


@torch.no_grad()
def deploy(model: VisionTransformer, hyper: DualLoraHyper) -> bool:
    """Fold the parts of a trained model in place; return whether it is the plain ViT then.

    A model whose options are not foldable (see `foldable`) stays as it is.
    """
    attentions = cast(list[SeamAttention], [block.attn for block in model.blocks])
    plugs = [cast(DualPlug, attention.plug) for attention in attentions]
    if all(plug.idle for plug in plugs):
        return True
    if not all(foldable(attention, hyper) for attention in attentions):
        return False
    context, several = ForwardContext(), len(model.head.heads) > 1
    for attention, plug in zip(attentions, plugs, strict=True):
        fold_first(attention.qkv, plug)
    gated = [plug.index for plug in plugs if len(plug.banks["v"].down) > hyper.rank]
    calibrated = [plug.index for plug in plugs if hyper.calibration != "none" and several and plug.calibrates]
    scored = [*gated, *calibrated]
    for attention, plug in zip(attentions, plugs, strict=True):
        attention.plug = None
        if scored and plug.index >= min(scored):
            posterior = posterior_of(plugs, gated[0], plug.index) if plug.index in gated else None
            fold(attention, plug, posterior, context)
    posterior = posterior_of(plugs, calibrated[0], calibrated[-1]) if calibrated else None
    model.head = DeployedHead(model.head, posterior, context)
    return not scored


def foldable(attention: SeamAttention, hyper: DualLoraHyper) -> bool:
    """Whether there are folded passes for these options and this attention: for the defaults there are."""
    options = hyper.targets == "v" and hyper.gate != "relevance" and hyper.calibration != "stick"
    norms = (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()))
    return options and all(isinstance(norm, nn.Identity) for norm in norms)


def fold_first(qkv: nn.Linear, plug: DualPlug) -> None:
    """Merge the first experience's residual adapter of v into the weight: its gate is always 1."""
    bank, rank = plug.banks["v"], plug.hyper.rank
    merge(qkv, "v", bank.up[:, :rank], bank.down[:rank])


def fold(
    attention: SeamAttention, plug: DualPlug, posterior: Posterior | None, context: ForwardContext
) -> None:
    """Make `attention` a `DeployedAttention`."""
    attention.plug = ScoredPlug(plug, posterior, context)
    attention.qkv = folded_projection(attention, aligned(plug.banks["v"].down[plug.hyper.rank :], 0))
    attention.__class__ = DeployedAttention


def aligned(columns: Tensor, dim: int) -> Tensor:
    """With zeros for further columns of adapters in dimension `dim`, up to a multiple of `ALIGNED`."""
    shape = list(columns.shape)
    shape[dim] = -shape[dim] % ALIGNED
    return torch.cat([columns, columns.new_zeros(shape)], dim)


def folded_projection(attention: SeamAttention, down: Tensor) -> nn.Linear:
    """The layer (D -> 3D + c) that gives scaled q, k, v and the outputs of `down` (c, D)."""
    qkv = attention.qkv
    scale = qkv.weight.new_ones(qkv.out_features)
    scale[: len(scale) // 3] = attention.head_dim**-0.5
    # On no device, because to initialise it would take random numbers from the training that goes on.
    folded = nn.Linear(qkv.in_features, len(scale) + len(down), bias=qkv.bias is not None, device="meta")
    folded.weight = nn.Parameter(torch.cat([qkv.weight * scale[:, None], down]), requires_grad=False)
    if qkv.bias is not None:
        folded.bias = nn.Parameter(F.pad(qkv.bias * scale, (0, len(down))), requires_grad=False)
    return folded


def score_sums(plug: DualPlug, rest: int) -> tuple[Tensor, Tensor]:
    """The weights (3 t, D) of a block's squares, of m directions and `rest` others, and what is added (3 t,).

    The first t sums divided by the second t are the evidence over its mean over the experience's images,
    `identity.scores` without the part that all images share. The last t are the least divisors.
    """
    owner = F.pad(plug.basis_owner.double(), (0, 0, 0, rest))  # (D, t)
    every = torch.ones_like(owner)
    left = every - (owner.cumsum(1) - owner) if plug.hyper.score == "remaining" else every
    sums = torch.cat([owner / (plug.mean_evidence.double() + TINY), left, TINY * every], 1).T
    least = torch.zeros_like(sums[:, 0])
    least[2 * len(least) // 3 :] = TINY * TINY
    return sums, least


def posterior_of(plugs: Sequence[DualPlug], first: int, last: int) -> Posterior:
    """The posterior by the scores of the blocks from `first` to `last`."""
    shared = torch.stack([TINY / (plug.mean_evidence + TINY) for plug in plugs[first : last + 1]]).sum(0)
    return Posterior(first, last, shared, plugs[0].hyper.tau)
