"""timm's vision transformer with seams: named places in its attention where a method plugs in.

timm's model is created untouched. `open_seams` then turns each block's attention into a
`SeamAttention`: the same module, the same parameters under the same names, plus one slot, `plug`.
With the slot empty the call goes to timm's own code, so logits are timm's bit for bit and the pass
costs what timm's costs. A `Plug` sees the block's normalised input and may change

- what the projections give (`Plug.project`): low-rank additions to q, k, v;
- what is attended to (`Plug.attend`): prefixes in front of k and v; anything that needs the
  attention weights before v is used, such as the class token's read-out.

Attention stays fused in both cases. Shapes below: B images, N tokens, D width, H heads, D = H * Dh;
M >= N keys where a plug adds prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from methods.errors import UsageError

QKV = tuple[Tensor, Tensor, Tensor]

# What a plugged forward pass accounts for. Attention with other parts (a gate, say) is refused
# rather than computed wrongly.
KNOWN_PARTS = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop", "plug"}


class Plug(nn.Module):
    """What a method puts into one block's attention. As it stands it changes nothing."""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing at present: the call then goes to timm's own code."""
        return False

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        """Change the projections of x before they are normalised and split into heads.

        Args:
            x: (B, N, D), the block's normalised input.
            q, k, v: (B, N, D) each.
        """
        return q, k, v

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        """Change what enters the attention.

        Args:
            x: (B, N, D), the block's normalised input.
            q, k, v: (B, H, N, Dh) each.

        Returns:
            q (B, H, N, Dh), and k and v (B, H, M, Dh): the output keeps N tokens for any M.
        """
        return q, k, v


class SeamAttention(Attention):  # type: ignore[misc]
    """timm's multi-head self-attention with a slot for a `Plug`. Made by `open_seams` only."""

    plug: Plug | None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        plug = self.plug
        if plug is None or plug.idle:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        if any(a is not None for a in args) or any(kwargs.values()):
            raise UsageError("a plugged attention takes no mask; a plain vision transformer passes none")
        q, k, v = plug.project(x, *self.qkv(x).chunk(3, dim=-1))
        q, k, v = (t.view(*t.shape[:2], self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        q, k, v = plug.attend(x, self.q_norm(q), self.k_norm(k), v)
        dropout = self.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        out = out.transpose(1, 2).flatten(2)
        if hasattr(self, "norm"):
            out = self.norm(out)
        return self.proj_drop(self.proj(out))  # type: ignore[no-any-return]


def open_seams(vit: VisionTransformer) -> list[SeamAttention]:
    """Give every block's attention a slot for a plug, in place; return them in order of depth.

    Raises:
        UsageError: if `vit` is not a timm VisionTransformer with its standard attention.
    """
    if not isinstance(vit, VisionTransformer):
        raise UsageError(f"methods need a timm VisionTransformer, got {type(vit).__name__}")
    return [_open(block.attn) for block in vit.blocks]


def _open(attention: nn.Module) -> SeamAttention:
    if isinstance(attention, SeamAttention):
        return attention
    parts = {name for name, _ in attention.named_children()}
    if type(attention) is not Attention or not parts <= KNOWN_PARTS:
        raise UsageError(
            f"cannot open a {type(attention).__name__} with parts {sorted(parts)}; "
            "legal: the standard attention of timm's vit_* models"
        )
    # A change of class, not a wrapper: parameter names, hooks and isinstance checks stay as they were.
    attention.__class__ = SeamAttention
    opened = cast(SeamAttention, attention)
    opened.plug = None
    return opened


@contextmanager
def watching(attentions: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `see(i, x)` with the normalised input x (B, N, D) of attention i whenever a pass reaches it."""
    hooks = [
        attention.register_forward_pre_hook(lambda _, inputs, i=i: see(i, inputs[0]))
        for i, attention in enumerate(attentions)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def embed(vit: VisionTransformer, x: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, D): the features the classifier sees."""
    return vit.forward_head(vit.forward_features(x), pre_logits=True)  # type: ignore[no-any-return]
