"""What memory allows: images and features on a GPU as a whole, and the images of a pass on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: A tensor is copied to a GPU whole if it takes at most this share of the GPU's free memory.
MEMORY_SHARE = 0.25
#: Bytes of the largest activation of a pass on a CPU. For anything above 32 MiB glibc asks the system for
#: memory and returns it again, at every operator; prompts need some room below that.
LARGEST_ACTIVATION = 24 * 2**20
#: Images of a pass are a multiple of this.
STEP = 8


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU."""
    return torch.cuda.mem_get_info(device)[0]


def on_device(
    tensor: Tensor, device: torch.device, free: Callable[[torch.device], int] = free_memory
) -> Tensor:
    """The tensor on the device; where it is, if it would take too much of the device's memory."""
    fits = device.type == "cpu" or tensor.nbytes <= MEMORY_SHARE * free(device)
    return tensor.to(device) if fits else tensor


def images_per_pass(vit: Any, device: torch.device, most: int) -> int:
    """Images that pass through the model together where no gradient is needed.

    Args:
        vit: a timm VisionTransformer, in float32.
        most: their number where nothing speaks against it, as on a GPU.
    """
    if device.type != "cpu":
        return most
    tokens: int = vit.patch_embed.num_patches + vit.num_prefix_tokens
    widest: int = max(part.out_features for part in vit.blocks.modules() if isinstance(part, torch.nn.Linear))
    fitting = LARGEST_ACTIVATION // (4 * tokens * widest)
    return max(STEP, min(most, fitting // STEP * STEP))
