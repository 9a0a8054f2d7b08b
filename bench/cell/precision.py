"""The numerical precision of the passes through a model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context of a pass in "fp32" or "bf16"; weights stay in fp32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)
