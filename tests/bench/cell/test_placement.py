"""What fits on a GPU is copied there. The device "meta" stands for one."""

from __future__ import annotations

import torch

from bench.cell.placement import MEMORY_SHARE, on_device

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
