"""Train the packaged micro ViT on CIFAR-100 and write its weights.

    .nox/env/bin/python -m scripts.micro_vit.train --data-root ~/.cache/duallora-bench --out bench/weights
    .nox/env/bin/python -m scripts.micro_vit.card --data-root ~/.cache/duallora-bench --out bench/weights

Needs the CIFAR-100 python files under the data root. About an hour on two cores with bfloat16.
The recipe is plain supervised training: AdamW, cosine to zero, random crops and flips, label
smoothing. Half of the patches are dropped during the first epochs (as in FLIP, arXiv 2212.00794),
which halves their cost; the last ones see whole images. No weight averaging: with the rate at zero
at the end there is nothing left to average.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.datasets import CIFAR100

from bench.cell.backbone import MICRO_ARCHITECTURE, MICRO_NAME


@dataclass(frozen=True)
class Recipe:
    epochs: int = 36
    whole_image_epochs: int = 2
    batch_size: int = 128
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 2
    label_smoothing: float = 0.1
    patch_drop: float = 0.5
    crop_padding: int = 4
    seed: int = 0


def images(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """All images as (N, 3, 32, 32) in [-1, 1] and their labels (N,)."""
    data = CIFAR100(root, train=train)
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    return pixels, torch.tensor(data.targets)


def augment(x: Tensor, padding: int, rng: np.random.Generator) -> Tensor:
    """Flip half of a batch (B, 3, S, S) and shift every image by up to `padding` pixels."""
    flip = torch.from_numpy(rng.random(len(x)) < 0.5)
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, (padding,) * 4, mode="reflect")
    size = x.shape[-1]
    corners = rng.integers(0, 2 * padding + 1, (len(x), 2)).tolist()
    return torch.stack([p[:, i : i + size, j : j + size] for p, (i, j) in zip(padded, corners, strict=True)])


def factor(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def optimiser(model: VisionTransformer, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr)


def train(model: VisionTransformer, x: Tensor, y: Tensor, recipe: Recipe) -> None:
    rng = np.random.default_rng(recipe.seed)
    opt = optimiser(model, recipe)
    steps = len(x) // recipe.batch_size
    for epoch in range(recipe.epochs):
        model.train()
        whole = epoch >= recipe.epochs - recipe.whole_image_epochs
        model.patch_drop.prob = 0.0 if whole else recipe.patch_drop
        order, start, total_loss = torch.from_numpy(rng.permutation(len(x))), time.perf_counter(), 0.0
        for step in range(steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            lr = recipe.lr * factor(epoch * steps + step, recipe.epochs * steps, recipe.warmup_epochs * steps)
            for group in opt.param_groups:
                group["lr"] = lr
            batch = augment(x[rows], recipe.crop_padding, rng)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), y[rows], label_smoothing=recipe.label_smoothing)
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            total_loss += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{recipe.epochs} loss {total_loss / steps:.3f} {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/weights"))
    args = parser.parse_args()
    recipe = Recipe()
    torch.manual_seed(recipe.seed)
    model = VisionTransformer(num_classes=100, patch_drop_rate=recipe.patch_drop, **MICRO_ARCHITECTURE)
    train(model, *images(args.data_root, train=True), recipe)
    halves = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    save_file(halves, str(args.out / f"{MICRO_NAME}.safetensors"))


if __name__ == "__main__":
    main()
