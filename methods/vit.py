"""timm's vision transformer with seams: named places in its attention where a method plugs in.

timm's model is created unchanged. `open_seams` then turns each block's attention into a
`SeamAttention`: the same module, with the same parameters under the same names, and one slot, `plug`.
With the slot empty, timm's own code runs, so logits equal timm's bit for bit and the pass has timm's cost.
A `Plug` reads the block's normalised input and may change

- the output of the projections (`Plug.project`): low-rank additions to q, k, v;
- what is attended to (`Plug.attend`): prefixes in front of k and v, or anything that needs the
  attention weights before v is used, such as the class token's read-out.

Attention is fused in both cases. `InputTokens` adds tokens to the sequence itself and has the classifier
read them.

Shapes: B images of S x S pixels, N tokens, D width, H heads, D = H * Dh; M >= N keys where a plug adds
prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from methods.errors import UsageError

QKV = tuple[Tensor, Tensor, Tensor]

# The parts of an attention that a plugged pass computes. An attention with other parts, such as a gate, is
# refused.
KNOWN_PARTS = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop", "plug"}


class Plug(nn.Module):
    """Base of what a method plugs into one block's attention; this one changes nothing."""

    @property
    def idle(self) -> bool:
        """Whether it changes nothing at present; timm's own code runs then."""
        return False

    def project(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        """Change the projections of x before they are normalised and split into heads.

        Args:
            x: (B, N, D), the block's normalised input.
            q: queries (B, N, D).
            k: keys (B, N, D).
            v: values (B, N, D).
        """
        return q, k, v

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        """Change what enters the attention.

        Args:
            x: (B, N, D), the block's normalised input.
            q: queries (B, H, N, Dh).
            k: keys (B, H, N, Dh).
            v: values (B, H, N, Dh).

        Returns:
            q (B, H, N, Dh), and k and v (B, H, M, Dh): the output keeps N tokens for any M.
        """
        return q, k, v


def with_changes(
    q: Tensor, k: Tensor, v: Tensor, targets: Iterable[str], change: Callable[[str], Tensor]
) -> QKV:
    """q, k and v, with `change(name)` added to those that are named in `targets`, such as "kv"."""
    named = {*targets}
    q, k, v = (t + change(n) if n in named else t for n, t in zip("qkv", (q, k, v), strict=True))
    return q, k, v


class Prefix(Plug):
    """Keys and values in front of the block's own (prefix tuning, arXiv 2101.00190).

    Neither a projection nor a normalisation of keys is applied to them.

    Attributes:
        prompt: keys and values, (B, L, D) each, or (1, L, D) for the same ones in every image; None: idle.
    """

    prompt: tuple[Tensor, Tensor] | None = None

    @property
    def idle(self) -> bool:
        return self.prompt is None

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        assert self.prompt is not None
        prefix_k, prefix_v = (
            split_heads(t.to(k.dtype), k.shape[1]).expand(len(k), -1, -1, -1) for t in self.prompt
        )
        return q, torch.cat([prefix_k, k], 2), torch.cat([prefix_v, v], 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, Dh)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


class SeamAttention(Attention):  # type: ignore[misc]
    """timm's multi-head self-attention with a slot for a `Plug`. Only `open_seams` creates it."""

    plug: Plug | None

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Raises:
            UsageError: if it is plugged and gets further arguments, such as a mask.
        """
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
        UsageError: if `vit` is not a timm VisionTransformer with its standard attention, or does not give its
            classifier one vector per image.
    """
    if not isinstance(vit, VisionTransformer):
        raise UsageError(f"methods need a timm VisionTransformer, got {type(vit).__name__}")
    if type(vit).forward_head is not VisionTransformer.forward_head:
        raise UsageError(
            f"cannot open a {type(vit).__name__}, which classifies in its own way, as a distilled ViT does "
            "with two heads; legal: timm's vit_* models with one classifier"
        )
    if not vit.global_pool:
        raise UsageError(
            "the backbone has no pooling, so that its classifier reads every token; legal: a pooling such as "
            "token, avg or map"
        )
    return [_open(_attention_of(block)) for block in vit.blocks]


def _attention_of(block: nn.Module) -> nn.Module:
    attention = getattr(block, "attn", None)
    if not isinstance(attention, nn.Module):
        raise UsageError(
            f"cannot open a {type(block).__name__}, in which attention is no part of its own, as in parallel "
            "blocks; legal: timm's vit_* models with its standard blocks"
        )
    return attention


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


class AddedTokens:
    """Tokens added to the sequence before the first block; the classifier reads what it reads in timm.

    They follow the image's own tokens, so that the class token stays first, and have no position embedding.
    Attention does not depend on the order of tokens, so their place has no other effect.

    Attributes:
        prompt: the tokens (B, L, D); None: nothing is added.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        self.prompt: Tensor | None = None
        vit.norm_pre.register_forward_hook(self._append)

    def _append(self, module: nn.Module, inputs: object, tokens: Tensor) -> Tensor:
        return tokens if self.prompt is None else torch.cat([tokens, self.prompt.to(tokens.dtype)], 1)


class InputTokens(AddedTokens):
    """As `AddedTokens`, but the classifier reads the mean of the outputs of the added tokens."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__(vit)
        self._pooled: Tensor | None = None
        vit.norm.register_forward_hook(self._pool)
        vit.fc_norm.register_forward_pre_hook(self._replace)

    def _pool(self, module: nn.Module, inputs: object, tokens: Tensor) -> None:
        self._pooled = None if self.prompt is None else tokens[:, -self.prompt.shape[1] :].mean(1)

    def _replace(self, module: nn.Module, inputs: object) -> Tensor | None:
        """The input (B, D) of the last layers before the classifier, in place of timm's pooled tokens."""
        pooled, self._pooled = self._pooled, None
        return pooled


@contextmanager
def watching(attentions: Sequence[nn.Module], receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the context, every pass calls `receive(i, x)` with the input x (B, N, D) of attention i."""
    hooks = [
        attention.register_forward_pre_hook(lambda _, inputs, i=i: receive(i, inputs[0]))
        for i, attention in enumerate(attentions)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def embed(vit: VisionTransformer, x: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, D): the features that the classifier reads."""
    return vit.forward_head(vit.forward_features(x), pre_logits=True)  # type: ignore[no-any-return]


def check_blocks(option: str, blocks: Sequence[int], vit: VisionTransformer) -> None:
    """Refuse block numbers, from 0, that `vit` does not have or that occur twice.

    Raises:
        UsageError: naming `option` and the legal numbers.
    """
    if set(blocks) <= set(range(len(vit.blocks))) and len(set(blocks)) == len(blocks):
        return
    raise UsageError(
        f"{option} is {list(blocks)}; legal: distinct numbers from 0 to {len(vit.blocks) - 1}, "
        f"this backbone has {len(vit.blocks)} blocks"
    )
