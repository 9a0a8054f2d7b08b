"""What fits on a GPU is copied there. The device "meta" stands for one."""

from __future__ import annotations

import pytest
import timm
import torch

from bench.cell.placement import MEMORY_SHARE, images_per_pass, on_device

META, CPU = torch.device("meta"), torch.device("cpu")


def test_what_fits_is_copied_to_the_device_and_the_rest_stays() -> None:
    tensor = torch.zeros(10, 4, 4, 3, dtype=torch.uint8)
    needed = int(tensor.nbytes / MEMORY_SHARE)
    assert on_device(tensor, META, lambda _: needed).device == META
    assert on_device(tensor, META, lambda _: needed - 4).device == CPU


def test_nothing_is_asked_of_a_cpu() -> None:
    def refuse(device: torch.device) -> int:
        raise AssertionError("a CPU has no memory of its own")

    assert on_device(torch.zeros(3), CPU, refuse).device == CPU


@pytest.mark.parametrize(
    ("name", "size", "images"),
    [
        ("vit_tiny_patch16_224", 64, 128),  # 17 tokens of 768 numbers: 52 kB an image
        ("vit_tiny_patch16_224", 224, 40),  # 197 tokens: 605 kB
        ("vit_base_patch16_224", 224, 8),  # 3,072 numbers a token: 2.4 MB
        ("vit_large_patch16_224", 384, 8),  # more than fits: the least
    ],
)
def test_the_largest_activation_of_a_pass_on_a_cpu_stays_below_what_is_mapped_anew(
    name: str, size: int, images: int
) -> None:
    with META:
        vit = timm.create_model(name, img_size=size)
    assert images_per_pass(vit, CPU, 128) == images
    assert images_per_pass(vit, META, 128) == 128
