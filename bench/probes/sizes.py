"""How large a state is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Size:
    """`elements` are the floating-point numbers, parameters and buffers; `bytes` are those of all tensors,
    of whatever type.
    """

    elements: int
    bytes: int


def size_of(tensors: Iterable[Tensor]) -> Size:
    """The size of all tensors together."""
    given = list(tensors)
    return Size(
        elements=sum(tensor.numel() for tensor in given if tensor.is_floating_point()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in given),
    )
