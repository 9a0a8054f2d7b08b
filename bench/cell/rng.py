"""Independent random streams by purpose, derived from one seed.

Within a seed all methods see the same classes and the same images in the same order, so that comparisons
between methods are paired; only a method's own random numbers differ.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Purpose = Literal["initialisation", "data order", "augmentation", "statistics"]

GLOBAL, CUDA, NUMPY = "torch", "cuda", "numpy"


def derive(seed: int, purpose: Purpose) -> int:
    """A 63-bit seed for one purpose; streams of different purposes or seeds are unrelated."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: Purpose) -> torch.Generator:
    """A generator on the CPU, so that a stream is the same for every device."""
    return torch.Generator().manual_seed(derive(seed, purpose))


def seed_everything(seed: int) -> None:
    """Seed the global generators, which serve initialisation and a method's own random numbers."""
    value = derive(seed, "initialisation")
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)


def snapshot_rng(
    streams: Mapping[str, torch.Generator], device: torch.device
) -> tuple[dict[str, Tensor], Any]:
    """The state of every random stream: tensors, and values that JSON can hold.

    Args:
        streams: generators by name; the global ones of torch, numpy and Python are added.
        device: its generator is added if it is a GPU.
    """
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
    """Set every random stream to its state in a snapshot."""
    for name, stream in streams.items():
        stream.set_state(tensors[name])
    torch.set_rng_state(tensors[GLOBAL])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors[CUDA], device)
    np.random.set_state(("MT19937", tensors[NUMPY].numpy().astype(np.uint32), *plain[NUMPY]))
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
