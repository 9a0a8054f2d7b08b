"""What is kept on a GPU as a whole, so that batches are taken there: images and features, where they fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: A tensor is copied to a GPU whole if it takes at most this share of the GPU's free memory.
MEMORY_SHARE = 0.25


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU."""
    return torch.cuda.mem_get_info(device)[0]


def on_device(
    tensor: Tensor, device: torch.device, free: Callable[[torch.device], int] = free_memory
) -> Tensor:
    """The tensor on the device; where it is, if it would take too much of the device's memory."""
    fits = device.type == "cpu" or tensor.nbytes <= MEMORY_SHARE * free(device)
    return tensor.to(device) if fits else tensor
