"""Independent random streams by purpose, derived from one seed.

Within a seed all methods see the same classes in the same order and the same images in the same
order, so that comparisons between methods are paired; only what a method draws for itself differs.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, Literal

Purpose = Literal["initialisation", "data order", "augmentation", "statistics"]


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
