"""Sources of images: an array in memory, or image files with a cache of decoded images."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bench.benchmarks.drafts import write_whole
from bench.benchmarks.whole import WholeImages, mapped, parts, read_flat, unpack, write_flat
from methods.errors import UsageError, abbreviate

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    BoolArray = NDArray[np.bool_]
    UInt8Array = NDArray[np.uint8]
    Int64Array = NDArray[np.int64]

#: How an image file becomes a square; see `square`, `centred`, `squashed`.
Shape = Literal["square", "centred", "squashed"]

DECODER = "exif-rgb-bicubic-fit 2"
WHOLE_DECODER = "exif-rgb-whole-bilinear 1"

ORIENTATION = 0x0112  # tag of EXIF
#: Orientation -> what makes the image upright, a name of `PIL.Image.Transpose`.
TURNS: Mapping[Any, str] = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
DRAFT = ".decoding-"  # how the name of a cache file begins while it is written
CHUNK = 256  # images decoded ahead of the writer: bounds the memory used where the disk is slow


class Pixels(Protocol):
    """n images, in order."""

    @property
    def native_size(self) -> int | None:
        """Side in pixels at which all images are stored; None if they are files of any size."""

    def __len__(self) -> int: ...

    def take(self, rows: Int64Array) -> Pixels:
        """The images of these rows, in this order. Decodes nothing."""

    def digests(self) -> list[str]:
        """sha256 of each image as it is stored, in hexadecimal. Decodes nothing."""

    def decode(self, size: int) -> UInt8Array:
        """(n, size, size, 3) uint8.

        Raises:
            UsageError: naming every image that cannot be decoded.
        """

    def shaped(self, shape: Shape) -> Pixels:
        """The same images, whose `decode` makes squares in this way; no change to images that are square."""

    def decode_whole(self, limit: int) -> UInt8Array | WholeImages:
        """All images with their own sides, which are reduced where the shorter one is above `limit`.

        Raises:
            UsageError: naming every image that cannot be decoded.
        """


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Images in memory: (n, s, s, 3) uint8."""

    images: UInt8Array

    @property
    def native_size(self) -> int:
        return int(self.images.shape[1])

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Int64Array) -> ArrayPixels:
        return ArrayPixels(self.images[rows])

    def digests(self) -> list[str]:
        return [hashlib.sha256(image.tobytes()).hexdigest() for image in self.images]

    def decode(self, size: int) -> UInt8Array:
        """The images; each is resampled (bicubic, antialiased) if `size` is not the native one."""
        if size == self.native_size:
            return self.images
        return _resized(self.images, size)

    def shaped(self, shape: Shape) -> ArrayPixels:
        return self

    def decode_whole(self, limit: int) -> UInt8Array:
        return self.decode(min(limit, self.native_size))


def _resized(images: UInt8Array, size: int) -> UInt8Array:
    import numpy as np
    from PIL import Image

    resized = np.empty((len(images), size, size, 3), np.uint8)
    for row, image in enumerate(images):
        resized[row] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return resized


def upright(path: Path) -> Image.Image:
    """One image file as RGB, upright.

    Transparency is dropped, as torchvision's loader does; of several frames the first is read. Of the
    metadata only the orientation is, and broken metadata cost no image.

    Raises:
        ValueError: for more than 8 bits per channel, which a conversion to RGB would clip.
        OSError and others: if it is not an intact image.
    """
    try:
        return _upright(path)
    except Exception:  # a PNG is refused as a whole for a text that is damaged or long
        if (pixels_only := without_metadata(path.read_bytes())) is None:
            raise
        return _upright(io.BytesIO(pixels_only))


def _upright(file: Path | BinaryIO) -> Image.Image:
    """The first frame in RGB, turned as its orientation says."""
    from PIL import Image

    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}: more than 8 bits per channel; convert it to 8 bits")
        image.load()
        turn = _turn(image)
        return (image if turn is None else image.transpose(Image.Transpose[turn])).convert("RGB")


def _turn(image: Image.Image) -> str | None:
    """What makes the image upright, by EXIF or by XMP; None where these say nothing that can be read."""
    for read in (lambda: image.getexif().get(ORIENTATION), lambda: _tag(image.info["exif"])):
        with suppress(Exception):  # metadata can be broken in every way, and the pixels be whole
            if turn := TURNS.get(read()):
                return turn
    return None


def _tag(exif: bytes) -> int | None:
    """The orientation, found in the list of tags by itself: Pillow stops at a broken tag before it.

    Raises:
        struct.error and others: if the list is broken, too.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if (tag, kind) == (ORIENTATION, 3):  # 3: a number of 16 bits, in the entry itself
            return int(value)
    return None


def without_metadata(content: bytes) -> bytes | None:
    """A PNG with only those chunks that its pixels and its orientation come from; None for another format.

    A chunk is its length, its type, the content and a checksum of the two (PNG specification, section 5.3).
    """
    if not content.startswith(PNG):
        return None
    kept, start = [PNG], len(PNG)
    while start + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        chunk = content[start : start + 12 + length]
        intact = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if name in PNG_PIXELS or (name == b"eXIf" and intact):
            kept.append(chunk)
        start += 12 + length
    return b"".join(kept)


def square(path: Path, size: int) -> UInt8Array:
    """One image file as (size, size, 3) uint8: short side = `size`, central square; bicubic, antialiased."""
    import numpy as np
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(upright(path), (size, size), Image.Resampling.BICUBIC))


def centred(path: Path, size: int) -> UInt8Array:
    """As `square`, but bilinear: torchvision's Resize(size) and CenterCrop(size)."""
    import numpy as np

    image = _short_side(upright(path), size)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def squashed(path: Path, size: int) -> UInt8Array:
    """The whole image as (size, size, 3) uint8, whatever its aspect; bilinear, not antialiased.

    What TensorFlow's image.resize and a cast to uint8, which rounds down, do.
    """
    import torch
    from torch.nn.functional import interpolate

    image = torch.from_numpy(_array(upright(path))).permute(2, 0, 1)[None].float()
    resized = interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=False)
    pixels: UInt8Array = resized[0].permute(1, 2, 0).byte().contiguous().numpy()
    return pixels


def whole(path: Path, limit: int) -> UInt8Array:
    """The whole image, (h, w, 3) uint8, reduced (bilinear) if its shorter side is above `limit` pixels."""
    image = upright(path)
    return _array(_short_side(image, limit) if min(image.size) > limit else image)


def _short_side(image: Image.Image, size: int) -> Image.Image:
    """The image with `size` pixels on its shorter side, as torchvision's Resize; bilinear, antialiased."""
    from PIL import Image

    short = min(image.size)
    width, height = (size if side == short else size * side // short for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _array(image: Image.Image) -> UInt8Array:
    import numpy as np

    return np.array(image)


#: shape -> how a file becomes such a square, and the name of that in the key of the cache.
SHAPES: dict[Shape, tuple[Callable[[Path, int], UInt8Array], str]] = {
    "square": (square, DECODER),
    "centred": (centred, "exif-rgb-bilinear-centre 1"),
    "squashed": (squashed, "exif-rgb-bilinear-squash 1"),
}


@dataclass(frozen=True, eq=False)
class FilePixels:
    """Image files of any size. Decoded images are stored in `<cache>/<key>.npy` and memory-mapped.

    The key is a hash of the files' content, the size and the decoder, so a changed file is decoded again. The
    array is mapped copy-on-write: writing to it changes no file.

    Attributes:
        read_square: decodes one file, as `square` does.
        decoder: its name in the key.
    """

    paths: tuple[Path, ...]
    cache: Path
    read_square: Callable[[Path, int], UInt8Array] = square
    decoder: str = DECODER

    @property
    def native_size(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Int64Array) -> FilePixels:
        return replace(self, paths=tuple(self.paths[row] for row in rows))

    def digests(self) -> list[str]:
        chunks = [self.paths[start : start + CHUNK] for start in range(0, len(self.paths), CHUNK)]
        with ThreadPoolExecutor() as pool:  # by chunk: a call of the pool takes longer than to look at a file
            return [digest for digests in pool.map(_sha256_of_all, chunks) for digest in digests]

    def decode(self, size: int) -> UInt8Array:
        shape = (len(self.paths), size, size, 3)
        digests = self.digests()
        cached = self.cache / f"{_cache_key(self.decoder, digests, size)}.npy"
        images = _read_cache(cached, shape)
        if images is not None:
            return images
        try:
            write_whole(cached, DRAFT, lambda file: _write_array(file, shape, self._decoded(size, digests)))
        except OSError as error:
            self._warn_of_memory(error)
            return _in_memory(shape, self._decoded(size, digests))
        written = _read_cache(cached, shape)
        assert written is not None, "a cache file that was just written can be read"
        return written

    def shaped(self, shape: Shape) -> FilePixels:
        read_square, decoder = SHAPES[shape]
        return replace(self, read_square=read_square, decoder=decoder)

    def decode_whole(self, limit: int) -> WholeImages:
        import numpy as np

        pixels, digests, n = replace(self, read_square=whole), self.digests(), len(self)
        cached = self.cache / f"{_cache_key(WHOLE_DECODER, digests, limit)}.npy"
        images = read_flat(cached, n)
        if images is not None:
            return images
        try:
            write_whole(cached, DRAFT, lambda file: write_flat(file, pixels._decoded(limit, digests)))
            written = read_flat(cached, n)
        except OSError as error:
            self._warn_of_memory(error)
            flat = b"".join(parts(pixels._decoded(limit, digests)))
            written = unpack(np.frombuffer(bytearray(flat), np.uint8), n)
        assert written is not None, "what was just written can be read"
        return written

    def _warn_of_memory(self, error: OSError) -> None:
        warnings.warn(
            f"decoded images cannot be stored in {self.cache} ({error}): they stay in memory, and the "
            "next run decodes them again; free space or allow writing there, or give another --data-root",
            stacklevel=3,
        )

    def _decoded(self, size: int, digests: Sequence[str]) -> Iterator[UInt8Array]:
        """The images of files that have these hashes before and after.

        Raises:
            UsageError: at the end, naming the files that cannot be decoded, or that were written meanwhile.
        """
        yield from decoded(self.paths, size, self.read_square)
        rows = zip(self.paths, digests, self.digests(), strict=True)
        if changed := [str(path) for path, before, after in rows if before != after]:
            raise UsageError(
                f"{len(changed)} of {len(self.paths)} images were written while they were decoded: "
                f"{abbreviate(changed)}; run the same command again when nothing writes there any more"
            )


def _sha256_of_all(paths: Sequence[Path]) -> list[str]:
    return [file_sha256(path) for path in paths]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes; a file is read again only if its size or one of its times differs.

    The time of the last change of status is among them: unlike the modification time, no program sets it.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        stat = path.stat()
        return _file_sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); restore it or remove it") from error


@cache
def _file_sha256(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decoded(
    paths: Sequence[Path], size: int, read_square: Callable[[Path, int], UInt8Array]
) -> Iterator[UInt8Array]:
    """The image of each file, in order, decoded by a pool of threads.

    Raises:
        UsageError: at the end, naming the files that cannot be decoded (each yields nothing).
    """
    broken: list[str] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            for path, result in zip(chunk, pool.map(_attempt(read_square, size), chunk), strict=True):
                if isinstance(result, str):
                    broken.append(f"{path} ({result})")
                else:
                    yield result
    if broken:
        listing = "\n  ".join(broken[:10])
        raise UsageError(
            f"{len(broken)} of {len(paths)} images cannot be decoded; repair or remove them"
            f"{' (the first 10 are listed)' if len(broken) > 10 else ''}:\n  {listing}"
        )


def _attempt(read_square: Callable[[Path, int], UInt8Array], size: int) -> Callable[[Path], UInt8Array | str]:
    """A function that decodes a file, and returns the reason where that fails."""
    from PIL import UnidentifiedImageError

    def attempt(path: Path) -> UInt8Array | str:
        try:
            return read_square(path, size)
        except UnidentifiedImageError:  # Pillow's message repeats the path
            return "not an image" if path.stat().st_size else "an empty file"
        except Exception as error:  # a decoder of a damaged file may raise anything
            return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    return attempt


def _cache_key(decoder: str, digests: list[str], size: int) -> str:
    import PIL

    text = "\n".join([decoder, PIL.__version__, str(size), *digests])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_cache(path: Path, shape: tuple[int, ...]) -> UInt8Array | None:
    """The mapped array, or None if the file is absent or is not a complete array of this shape."""
    array = mapped(path)
    return array if array is not None and array.shape == shape else None


def _write_array(file: BinaryIO, shape: tuple[int, ...], images: Iterator[UInt8Array]) -> None:
    import numpy as np

    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for image in images:
        file.write(image.tobytes())


def _in_memory(shape: tuple[int, ...], images: Iterator[UInt8Array]) -> UInt8Array:
    import numpy as np

    array = np.empty(shape, np.uint8)
    row = 0
    for row, image in enumerate(images, start=1):
        array[row - 1] = image
    assert row == len(array), "every image was decoded"
    return array
