"""Random streams: by purpose, by seed, and nothing else."""

from __future__ import annotations

import itertools
import random
from typing import get_args

import numpy as np
import torch

from bench.cell.rng import Purpose, derive, generator, seed_everything


def test_streams_differ_by_purpose_and_by_seed():
    seeds = [derive(seed, purpose) for seed, purpose in itertools.product(range(50), get_args(Purpose))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_is_the_same_whatever_was_drawn_before():
    first = torch.rand(3, generator=generator(1, "augmentation"))
    torch.rand(100)
    assert torch.equal(torch.rand(3, generator=generator(1, "augmentation")), first)


def test_seeding_reaches_all_three_libraries():
    def draws():
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    seed_everything(4)
    first = draws()
    seed_everything(4)
    assert draws() == first
    seed_everything(5)
    assert all(a != b for a, b in zip(draws(), first, strict=True))
