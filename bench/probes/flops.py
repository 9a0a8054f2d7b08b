"""Floating-point operations of a prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops_of(model: Any, images: Tensor) -> int:
    """Floating-point operations of the matrix products and convolutions of `model(images)`.

    A product of (n, k) and (k, m) counts 2 n k m: multiplications and additions. Attention runs without fused
    kernels here, because the counter does not know all of them.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops())
