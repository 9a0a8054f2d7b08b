"""timm's vision transformer with seams: named places in its attention where a method plugs in.

timm's model is created untouched. `open_seams` then turns each block's attention into a
`SeamAttention`: the same module, the same parameters under the same names, plus one slot, `plug`.
With the slot empty the call goes to timm's own code, so logits are timm's bit for bit and the pass
costs what timm's costs. A `Plug` sees the block's normalised input and may change

- what the projections give (`Plug.project`): low-rank additions to q, k, v;
- what is attended to (`Plug.attend`): prefixes in front of k and v; anything that needs the
  attention weights before v is used, such as the class token's read-out.

Attention stays fused in both cases. `InputTokens` adds tokens to the sequence itself and lets the
classifier read them. Shapes below: B images, N tokens, D width, H heads, D = H * Dh; M >= N keys where a
plug adds prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
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


class Prefix(Plug):
    """Keys and values in front of the block's own (prefix tuning, arXiv 2101.00190).

    They are used as they are: no projection and no normalisation of keys is applied to them. `given` is the
    pair of them, (B, L, D) each, or (1, L, D) for the same ones in every image; None: nothing is added.
    """

    given: tuple[Tensor, Tensor] | None = None

    @property
    def idle(self) -> bool:
        return self.given is None

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        assert self.given is not None
        prefix_k, prefix_v = (
            split_heads(t.to(k.dtype), k.shape[1]).expand(len(k), -1, -1, -1) for t in self.given
        )
        return q, torch.cat([prefix_k, k], 2), torch.cat([prefix_v, v], 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, Dh)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


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
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
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


class InputTokens:
    """Tokens added to the sequence in front of the first block; the classifier then reads their mean.

    `given` are the tokens (B, L, D); None: nothing is added, and the classifier reads what timm has it read.
    They stand behind the image's own tokens, where the class token keeps its place, and have no position
    embedding: attention is blind to order, so where they stand changes nothing else.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        self.given: Tensor | None = None
        self.read: Tensor | None = None
        vit.norm_pre.register_forward_hook(self._join)
        vit.norm.register_forward_hook(self._look)
        vit.fc_norm.register_forward_pre_hook(self._hand_over)

    def _join(self, module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        return tokens if self.given is None else torch.cat([tokens, self.given.to(tokens.dtype)], 1)

    def _look(self, module: nn.Module, inputs: Any, tokens: Tensor) -> None:
        self.read = None if self.given is None else tokens[:, -self.given.shape[1] :].mean(1)

    def _hand_over(self, module: nn.Module, inputs: Any) -> Tensor | None:
        """What goes into the last layers before the classifier, in place of the pooled tokens."""
        read, self.read = self.read, None
        return read


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


def check_blocks(option: str, blocks: Sequence[int], vit: VisionTransformer) -> None:
    """Refuse numbers of blocks, from 0, that `vit` does not have, or that are given twice.

    Raises:
        UsageError: naming the option and the legal numbers.
    """
    if set(blocks) <= set(range(len(vit.blocks))) and len(set(blocks)) == len(blocks):
        return
    raise UsageError(
        f"{option} is {list(blocks)}; legal: distinct numbers from 0 to {len(vit.blocks) - 1}, "
        f"this backbone has {len(vit.blocks)} blocks"
    )
