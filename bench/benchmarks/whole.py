"""Whole images of different sizes in one flat array, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from bench.benchmarks.pixels import Int64Array, UInt8Array

#: Bytes of an image's entry in the table at the end of the array: height and width, int64.
ENTRY = 16


@dataclass(frozen=True, eq=False)
class WholeImages:
    """n images, each (h, w, 3) uint8 of its own size.

    Attributes:
        flat: the pixels of all images, one image after the other.
        sizes: (n, 2), height and width of each.
        ends: (n,), where the pixels of each end.
    """

    flat: UInt8Array
    sizes: Int64Array
    ends: Int64Array

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: int) -> UInt8Array:
        height, width = (int(side) for side in self.sizes[row])
        end = int(self.ends[row])
        return self.flat[end - height * width * 3 : end].reshape(height, width, 3)


def unpack(array: UInt8Array, n: int) -> WholeImages | None:
    """The n images of a flat array that ends in their table; None if it holds something else."""
    import numpy as np

    table = len(array) - n * ENTRY
    if table < 0:
        return None
    sizes = np.frombuffer(array[table:].tobytes(), np.int64).reshape(n, 2)
    ends = np.cumsum(sizes.prod(1) * 3)
    if (sizes <= 0).any() or (n and int(ends[-1]) != table):
        return None
    return WholeImages(array[:table], sizes, ends)


def parts(images: Iterator[UInt8Array]) -> Iterator[bytes]:
    """The bytes of the flat array: the pixels of every image, then the table of their sizes."""
    import numpy as np

    sizes = []
    for image in images:
        sizes.append(image.shape[:2])
        yield image.tobytes()
    yield np.array(sizes, np.int64).tobytes()


def write_flat(file: BinaryIO, images: Iterator[UInt8Array]) -> None:
    """An array file of `parts`, whose length is known, and put into its header, only at the end."""
    import numpy as np

    def header(length: int) -> None:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (length,)}
        )

    header(0)
    start = file.tell()
    length = sum(file.write(part) for part in parts(images))
    file.seek(0)
    header(length)
    assert file.tell() == start, "numpy pads a header so that its length does not depend on the shape"


def read_flat(path: Path, n: int) -> WholeImages | None:
    """The n images of an array file, mapped copy-on-write; None if it is absent or damaged."""
    array = mapped(path)
    return unpack(array, n) if array is not None and array.ndim == 1 else None


def mapped(path: Path) -> UInt8Array | None:
    """An array file of bytes, mapped copy-on-write; None if it is absent, incomplete or another array."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(array, np.memmap) or array.dtype != np.uint8:
        return None
    complete = array.offset + array.nbytes == path.stat().st_size
    return array if complete and array.flags.c_contiguous else None
