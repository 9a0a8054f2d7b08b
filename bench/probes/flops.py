"""Floating-point operations of a prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    with (
        _without_gradients(model),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(images)
    return int(counter.get_total_flops())


@contextmanager
def _without_gradients(model: torch.nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside the block.

    The counter hooks on to every input of a module that requires one, and a view of a parameter, such as the
    query of attention pooling, requires one even where no gradient is recorded.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
