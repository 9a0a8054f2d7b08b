"""Independent random streams by purpose, derived from one seed.

Within a seed all methods see the same classes in the same order and the same images in the same
order, so that comparisons between methods are paired; only what a method draws for itself differs.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Purpose = Literal["initialisation", "data order", "augmentation", "statistics"]

GLOBAL, CUDA, NUMPY = "torch", "cuda", "numpy"


def derive(seed: int, purpose: Purpose) -> int:
    """A 63-bit seed for one purpose; the streams of two purposes or two seeds are unrelated."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: Purpose) -> Any:
    """A torch.Generator on the CPU, so that a stream is the same whatever the device."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose))


def seed_everything(seed: int) -> None:
    """Seed the global generators: they serve initialisation, and whatever a method draws itself."""
    import numpy as np
    import torch

    value = derive(seed, "initialisation")
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)


def snapshot_rng(
    streams: Mapping[str, torch.Generator], device: torch.device
) -> tuple[dict[str, Tensor], Any]:
    """Where every random stream stands: tensors, and what JSON can hold.

    Args:
        streams: generators by name; torch's, numpy's and Python's global ones are added.
        device: its own stream is added where it has one.
    """
    import numpy as np
    import torch

    tensors = {name: stream.get_state() for name, stream in streams.items()}
    tensors[GLOBAL] = torch.get_rng_state()
    if device.type == "cuda":
        tensors[CUDA] = torch.cuda.get_rng_state(device)
    _, keys, *rest = np.random.get_state()
    tensors[NUMPY] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return tensors, {"python": random.getstate(), NUMPY: rest}


def restore_rng(
    streams: Mapping[str, torch.Generator], device: torch.device, tensors: Mapping[str, Tensor], plain: Any
) -> None:
    """Let every random stream go on from where a snapshot was taken."""
    import numpy as np
    import torch

    for name, stream in streams.items():
        stream.set_state(tensors[name])
    torch.set_rng_state(tensors[GLOBAL])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors[CUDA], device)
    np.random.set_state(("MT19937", tensors[NUMPY].numpy().astype(np.uint32), *plain[NUMPY]))
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
