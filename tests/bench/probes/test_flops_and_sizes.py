"""Against kernels of known operations and tensors of known bytes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.probes.flops import flops_of
from bench.probes.sizes import Size, size_of
from tests.conftest import tiny_vit


def test_a_product_of_matrices_is_a_multiplication_and_an_addition_each() -> None:
    assert flops_of(torch.nn.Linear(7, 11), torch.zeros(3, 7)) == 2 * 3 * 7 * 11


def test_a_convolution_counts_every_tap() -> None:
    assert (
        flops_of(torch.nn.Conv2d(3, 5, 4, stride=4), torch.zeros(2, 3, 8, 8)) == 2 * (2 * 5 * 2 * 2) * 3 * 16
    )


def test_attention_is_looked_into_though_it_is_fused() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    heads, tokens, width = 2, 5, 4
    assert flops_of(Attention(), torch.zeros(1, heads, tokens, width)) == 2 * heads * 2 * tokens**2 * width


def test_a_vit_by_hand() -> None:
    """16 x 16 pixels, patches of 4: 17 tokens with the class token, 32 wide, 2 blocks, 5 classes."""
    tokens, width, depth = 17, 32, 2
    block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    patches = 2 * (tokens - 1) * 3 * 4 * 4 * width
    assert flops_of(tiny_vit(), torch.zeros(1, 3, 16, 16)) == depth * block + patches + 2 * width * 5


def test_counting_leaves_no_gradient_and_draws_no_random_number() -> None:
    model, x = tiny_vit(), torch.zeros(1, 3, 16, 16)
    before = torch.get_rng_state()
    flops_of(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("pool", ["token", "avg", "avgmax", "max", "map", "prr"])
def test_every_pooling_is_counted_and_goes_on_to_be_trained(pool: str) -> None:
    model = tiny_vit(global_pool=pool)
    assert flops_of(model, torch.zeros(1, 3, 16, 16)) >= flops_of(tiny_vit(), torch.zeros(1, 3, 16, 16))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("dtype", "elements", "size"), [(torch.float32, 6, 24), (torch.bfloat16, 6, 12), (torch.int64, 0, 48)]
)
def test_a_tensor_of_known_bytes(dtype: torch.dtype, elements: int, size: int) -> None:
    assert size_of([torch.zeros(2, 3, dtype=dtype)]) == Size(elements, size)


def test_sizes_add_up() -> None:
    assert size_of(iter([torch.zeros(2), torch.zeros(3, dtype=torch.bool)])) == Size(2, 11)
    assert size_of([]) == Size(0, 0)
