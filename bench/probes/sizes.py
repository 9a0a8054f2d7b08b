"""The size of tensors: elements and bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Size:
    """The size of a set of tensors.

    Attributes:
        elements: number of floating-point elements, in parameters and buffers.
        bytes: bytes of all tensors, of any type.
    """

    elements: int
    bytes: int


def size_of(tensors: Iterable[Tensor]) -> Size:
    """The size of all tensors together."""
    counted = list(tensors)
    return Size(
        elements=sum(tensor.numel() for tensor in counted if tensor.is_floating_point()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in counted),
    )
