"""Shared by all tests: a tiny ViT, and synthetic images that can be learnt in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

torch.set_num_threads(1)  # tensors are tiny: a second thread only costs time

SIZE = 16
CLASSES = 6


def tiny_vit(**changes: Any) -> VisionTransformer:
    """A ViT of 2 blocks, 32 wide, for 16-pixel inputs; the same weights at every call."""
    torch.manual_seed(0)
    settings = {"img_size": SIZE, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return VisionTransformer(**{**settings, **changes}, num_classes=5).eval()


def deep_vit() -> VisionTransformer:
    """A `tiny_vit` with enough blocks for the defaults of every method."""
    return tiny_vit(depth=5)


@pytest.fixture
def vit() -> Callable[..., VisionTransformer]:
    return tiny_vit


def synthetic(per_class: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, 16, 16) of 6 classes: one random pattern per class, plus noise; labels (n,)."""
    rng = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(CLASSES).repeat(per_class)
    return patterns[labels] + 0.5 * torch.randn(len(labels), 3, SIZE, SIZE, generator=rng), labels
