"""A prompted ViT in plain float64: explicit concatenation and softmax, sample by sample, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Keys and values in front of a block's own, (B, L, D) each.
Prefixes = Mapping[int, tuple[Tensor, Tensor]]


def attention(module: Any, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(B, N, D) -> (B, N, D), from the weights of `module`."""
    weight, bias = module.qkv.weight.double(), module.qkv.bias.double()
    width = x.shape[-1]
    dim = width // module.num_heads
    samples = []
    for i, tokens in enumerate(x.double()):
        outputs = []
        for head in range(module.num_heads):
            columns = slice(head * dim, (head + 1) * dim)
            rows = [slice(part * width + columns.start, part * width + columns.stop) for part in range(3)]
            q, k, v = (tokens @ weight[row].T + bias[row] for row in rows)
            if prefix is not None:
                k, v = (
                    torch.cat([p[i].double()[:, columns], t]) for p, t in zip(prefix, (k, v), strict=True)
                )
            scores = q @ k.T / dim**0.5
            shares = scores.exp() / scores.exp().sum(1, keepdim=True)
            outputs.append(shares @ v)
        joined = torch.cat(outputs, dim=-1)
        samples.append(joined @ module.proj.weight.double().T + module.proj.bias.double())
    return torch.stack(samples)


@torch.no_grad()
def features(vit: Any, images: Tensor, prefixes: Prefixes, tokens: Tensor | None = None) -> Tensor:
    """What the classifier reads, (B, D): the class token's output, or the mean of the outputs of `tokens`.

    Args:
        vit: a plain timm model in float64, which no method has touched.
        prefixes: by block.
        tokens: (B, L, D), in front of the sequence.
    """
    x = vit._pos_embed(vit.patch_embed(images.double()))
    added = 0 if tokens is None else tokens.shape[1]
    if tokens is not None:
        x = torch.cat([tokens.double(), x], 1)
    for i, block in enumerate(vit.blocks):
        x = x + attention(block.attn, block.norm1(x), prefixes.get(i))
        x = x + block.mlp(block.norm2(x))
    x = vit.norm(x)
    return x[:, :added].mean(1) if added else x[:, 0]


def logits(head: Any, read: Tensor) -> Tensor:
    """(B, C), class by class, from the heads of all experiences; minus infinity where there is none."""
    values = torch.full((len(read), head.width), -torch.inf, dtype=torch.float64)
    for task in head.tasks:
        for row, column in enumerate(task.classes.tolist()):
            values[:, column] = read @ task.weight[row].double() + task.bias[row].double()
    return values


def cosines(query: Tensor, keys: Sequence[Tensor]) -> list[float]:
    """Similarity of one query (D,) to each key (D,)."""
    return [float(query @ key.double() / (query.norm() * key.double().norm())) for key in keys]
