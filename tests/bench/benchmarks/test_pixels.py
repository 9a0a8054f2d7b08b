from __future__ import annotations

import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as reference

from bench.benchmarks.pixels import (
    SHAPES,
    ArrayPixels,
    FilePixels,
    centred,
    file_sha256,
    square,
    squashed,
    whole,
)
from bench.benchmarks.whole import WholeImages
from methods.errors import UsageError

Picture = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path, picture: Picture) -> FilePixels:
    paths = [picture(tmp_path / f"{number}.png", seed=number) for number in range(3)]
    return FilePixels(tuple(paths), tmp_path / "cache")


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def watched(files: FilePixels) -> tuple[FilePixels, list[Path]]:
    """The same images, and a list to which every file is added that they decode."""
    decodes: list[Path] = []

    def read_square(path: Path, size: int) -> np.ndarray:
        decodes.append(path)
        return square(path, size)

    return FilePixels(files.paths, files.cache, read_square), decodes


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    image = Image.new("L", (9, 7), 255).convert(mode)
    assert square(saved(tmp_path / f"x.{suffix}", image), 4).tolist() == np.full((4, 4, 3), 255).tolist()


def test_transparency_is_dropped(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGBA", (5, 5), (10, 20, 30, 0)))
    assert square(path, 2)[0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_are_refused_and_not_clipped(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(np.full((4, 4), 40_000, np.uint16)))
    with pytest.raises(ValueError, match="more than 8 bits"):
        square(path, 2)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    left_white = np.zeros((8, 8, 3), np.uint8)
    left_white[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: upright after a quarter clockwise, where left becomes top
    upright = square(saved(tmp_path / "x.png", Image.fromarray(left_white), exif=exif), 8)
    assert upright[0].min() == 255
    assert upright[-1].max() == 0


def tag(number: int, kind: int, count: int, value: bytes) -> bytes:
    """An entry of EXIF: kind 2 is a text, 3 a number of 16 bits, 11 and 12 are floats."""
    return struct.pack("<HHI", number, kind, count) + value.ljust(4, b"\0")


TURNED = tag(0x0112, 3, 1, b"\6")
SOFTWARE, MAKE = 0x0131, 0x010F
BROKEN_EXIF = {
    "a float where a text should be": [TURNED, tag(SOFTWARE, 11, 1, struct.pack("<f", 1.5))],
    "a value beyond the end, after the orientation": [TURNED, tag(SOFTWARE, 2, 100, b"\xff\xff")],
    "a value beyond the end, before the orientation": [tag(MAKE, 12, 1, b"\xff\xff"), TURNED],
    "a folder of itself": [TURNED, tag(0x8825, 4, 1, b"\x08")],
}


def exif(tags: list[bytes]) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("tags", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_the_orientation_is_read_whatever_else_is_in_the_metadata(
    tags: list[bytes], suffix: str, tmp_path: Path
) -> None:
    left_white = np.zeros((16, 16, 3), np.uint8)
    left_white[:, :8] = 255
    upright = square(saved(tmp_path / f"x.{suffix}", Image.fromarray(left_white), exif=exif(tags)), 16)
    assert upright[:6].min() > 200
    assert upright[-6:].max() < 50


NO_ORIENTATION = {
    "garbage": b"Exif\0\0garbage",
    "empty": b"Exif\0\0",
    "of no legal value": exif([tag(0x0112, 3, 1, b"\x63")]),
    "a text": exif([tag(0x0112, 2, 4, b"six")]),
    "more tags than there are": exif([])[:14] + b"\xff\xff",
}


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("content", NO_ORIENTATION.values(), ids=NO_ORIENTATION)
def test_an_image_whose_metadata_say_nothing_is_upright(content: bytes, suffix: str, tmp_path: Path) -> None:
    top_white = np.zeros((16, 16, 3), np.uint8)
    top_white[:8] = 255
    upright = square(saved(tmp_path / f"x.{suffix}", Image.fromarray(top_white), exif=content), 16)
    assert upright[:6].min() > 200
    assert upright[-6:].max() < 50


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


CHUNKS = {
    "a long text": chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000))),
    "a text with a wrong checksum": chunk(b"tEXt", b"key\0value")[:-1] + b"?",
    "a size that is cut short": chunk(b"pHYs", b"\0"),
    "a long profile": chunk(b"iCCP", b"key\0\0" + zlib.compress(bytes(3_000_000))),
}


@pytest.mark.parametrize("extra", CHUNKS.values(), ids=CHUNKS)
def test_a_png_is_read_whatever_is_in_its_metadata(extra: bytes, tmp_path: Path, picture: Picture) -> None:
    path = picture(tmp_path / "x.png", size=(8, 8))
    original, content = square(path, 8), path.read_bytes()
    path.write_bytes(content[:33] + extra + content[33:])  # after the header
    assert np.array_equal(square(path, 8), original)


def test_pixels_that_are_damaged_are_refused_whatever_the_metadata(tmp_path: Path, picture: Picture) -> None:
    path = picture(tmp_path / "x.png", size=(40, 40))
    content = path.read_bytes()
    path.write_bytes(content[:33] + CHUNKS["a long text"] + content[33 : len(content) // 2])
    with pytest.raises(OSError, match="truncated"):
        square(path, 8)


@pytest.mark.parametrize(
    "error", [AttributeError("no such tag"), KeyError(7), RecursionError(), MemoryError()]
)
def test_whatever_a_decoder_raises_names_its_file(error: Exception, files: FilePixels) -> None:
    def read_square(path: Path, size: int) -> np.ndarray:
        if path.name == "1.png":
            raise error
        return square(path, size)

    with pytest.raises(UsageError, match=rf"1 of 3 images .*\n.*1\.png \({type(error).__name__}"):
        FilePixels(files.paths, files.cache, read_square).decode(4)


@pytest.mark.parametrize("size", [(12, 4), (4, 12)])
def test_the_central_square_is_kept(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    top, left = (height - 4) // 2, (width - 4) // 2
    image[top : top + 4, left : left + 4] = 200
    assert square(saved(tmp_path / "x.png", Image.fromarray(image)), 4).min() == 200


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8))
    small = square(saved(tmp_path / "x.png", image), 8)
    assert abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_images_of_mixed_sizes_share_an_array(tmp_path: Path, picture: Picture) -> None:
    sizes = [(30, 10), (5, 5), (7, 40)]
    paths = [picture(tmp_path / f"{i}.png", size=size) for i, size in enumerate(sizes)]
    assert FilePixels(tuple(paths), tmp_path / "cache").decode(6).shape == (3, 6, 6, 3)


def test_decoded_images_are_in_order(files: FilePixels) -> None:
    expected = [square(path, 8) for path in files.paths]
    assert np.array_equal(files.decode(8), expected)
    assert np.array_equal(files.take(np.array([2, 0])).decode(8), [expected[2], expected[0]])


def test_second_decode_reads_the_cache(files: FilePixels) -> None:
    before = np.array(files.decode(8))
    other, decodes = watched(files)
    again = other.decode(8)
    assert np.array_equal(before, again)
    assert decodes == []
    assert isinstance(again, np.memmap)


def test_a_changed_file_or_size_is_decoded_again(files: FilePixels, picture: Picture) -> None:
    files.decode(8)
    other, decodes = watched(files)
    other.decode(6)
    assert sorted(decodes) == sorted(files.paths)
    picture(files.paths[1], seed=99, size=(20, 20))
    assert np.array_equal(files.decode(8)[1], square(files.paths[1], 8))


def test_two_sizes_are_both_cached(files: FilePixels) -> None:
    files.decode(8)
    files.decode(6)
    other, decodes = watched(files)
    assert (other.decode(8).shape, other.decode(6).shape) == ((3, 8, 8, 3), (3, 6, 6, 3))
    assert decodes == []


def test_writing_to_the_array_changes_no_file(files: FilePixels) -> None:
    first = files.decode(8)
    original = np.array(first)
    first[:] = 0
    assert np.array_equal(files.decode(8), original)


@pytest.mark.parametrize("damage", ["truncated", "longer", "foreign", "empty", "other shape"])
def test_a_damaged_cache_is_rebuilt(damage: str, files: FilePixels) -> None:
    original = np.array(files.decode(8))
    [cached] = files.cache.iterdir()
    content = cached.read_bytes()
    if damage == "other shape":
        np.save(cached, np.zeros((3, 8, 4, 6), np.uint8))
    else:
        damaged = {"truncated": content[:-1], "longer": content + b"x", "foreign": b"hello", "empty": b""}
        cached.write_bytes(damaged[damage])
    other, decodes = watched(files)
    assert np.array_equal(other.decode(8), original)
    assert len(decodes) == 3
    assert cached.read_bytes() == content
    assert list(files.cache.iterdir()) == [cached]


def test_unwritable_cache_warns_and_works(files: FilePixels) -> None:
    files.cache.write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="cannot be stored in"):
        images = files.decode(8)
    assert np.array_equal(images, [square(path, 8) for path in files.paths])


def test_full_disk_warns_and_leaves_nothing(files: FilePixels, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.warns(UserWarning, match="No space left"):
        images = files.decode(8)
    assert np.array_equal(images, [square(path, 8) for path in files.paths])
    assert list(files.cache.iterdir()) == []


def test_every_broken_image_is_named(files: FilePixels, tmp_path: Path, picture: Picture) -> None:
    whole = picture(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    truncated, text = tmp_path / "cut.jpg", tmp_path / "text.png"
    truncated.write_bytes(whole[: len(whole) // 2])
    text.write_text("no image")
    broken = FilePixels((files.paths[0], truncated, files.paths[1], text), files.cache)
    with pytest.raises(UsageError) as caught:
        broken.decode(8)
    message = str(caught.value)
    assert message.startswith("2 of 4 images cannot be decoded")
    assert f"{truncated} (" in message
    assert f"{text} (not an image)" in message
    assert list(files.cache.iterdir()) == []


def test_of_many_broken_images_ten_are_listed(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{number:02d}.png" for number in range(12))
    for path in paths:
        path.write_text("no image")
    with pytest.raises(UsageError, match="12 of 12") as caught:
        FilePixels(paths, tmp_path / "cache").decode(8)
    assert str(caught.value).count(".png") == 10


def test_a_vanished_file_is_named(files: FilePixels) -> None:
    files.paths[1].unlink()
    with pytest.raises(UsageError, match=r"1\.png cannot be read"):
        files.decode(8)


def test_cache_is_readable_by_its_group_as_any_new_file(files: FilePixels, tmp_path: Path) -> None:
    files.decode(8)
    [cached] = files.cache.iterdir()
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(cached.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_arrays_are_delivered_as_they_are_or_resampled() -> None:
    images = np.full((2, 8, 8, 3), 7, np.uint8)
    stored = ArrayPixels(images)
    assert stored.native_size == 8
    assert np.array_equal(stored.decode(8), images)
    assert np.array_equal(stored.decode(32), np.full((2, 32, 32, 3), 7))


def test_a_file_that_is_written_while_it_is_decoded_is_named(tmp_path: Path, picture: Picture) -> None:
    paths = tuple(picture(tmp_path / f"{n}.png", seed=n) for n in range(3))
    one_at_a_time = threading.Lock()  # or an image would be read half-written

    def slow(path: Path, size: int) -> np.ndarray:
        with one_at_a_time:
            picture(paths[1], seed=9)
            return square(path, size)

    with pytest.raises(UsageError, match=r"1 of 3 images were written while .*1\.png"):
        FilePixels(paths, tmp_path / "cache", slow).decode(4)
    assert list((tmp_path / "cache").iterdir()) == []


def test_content_that_keeps_size_and_modification_time_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before, state = file_sha256(path), path.stat()
    while path.stat().st_ctime_ns == state.st_ctime_ns:  # the clock of the file system has ticks
        path.write_bytes(b"two")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_sha256(path) != before


@pytest.mark.parametrize("sides", [(40, 30), (30, 41), (33, 20), (20, 20), (9, 30)])
def test_a_centred_square_is_torchvisions_resize_and_centre_crop(
    sides: tuple[int, int], tmp_path: Path, picture: Picture
) -> None:
    path = picture(tmp_path / "x.png", size=sides)
    with Image.open(path) as image:
        resized = reference.resize(image, [16], reference.InterpolationMode.BILINEAR)
        expected = np.asarray(reference.center_crop(resized, [16]))
    assert np.array_equal(centred(path, 16), expected)


def test_a_squashed_image_shows_the_whole_of_it_by_two_pixels_a_side(tmp_path: Path) -> None:
    """8 x 4 -> 2 x 2 at scales 4 and 2: the mean of the two middle ones of 4 pixels, and of both of 2."""
    grey = np.arange(32, dtype=np.uint8).reshape(4, 8) * 7
    path = saved(tmp_path / "x.png", Image.fromarray(grey))
    points = [[grey[2 * i : 2 * i + 2, 4 * j + 1 : 4 * j + 3].mean() for j in (0, 1)] for i in (0, 1)]
    assert np.array_equal(squashed(path, 2), np.repeat(np.floor(points)[..., None], 3, 2).astype(np.uint8))


@pytest.mark.parametrize(("limit", "shape"), [(20, (20, 30, 3)), (50, (20, 30, 3)), (10, (10, 15, 3))])
def test_a_whole_image_keeps_its_pixels_up_to_the_limit(
    limit: int, shape: tuple[int, ...], tmp_path: Path, picture: Picture
) -> None:
    path = picture(tmp_path / "x.png", size=(30, 20))
    image = whole(path, limit)
    assert image.shape == shape
    with Image.open(path) as original:
        assert np.array_equal(image, np.asarray(original)) == (limit >= 20)


def test_every_shape_has_a_cache_of_its_own(files: FilePixels) -> None:
    squares = [np.array(files.shaped(shape).decode(6)) for shape in SHAPES]
    assert len(list(files.cache.iterdir())) == len(SHAPES) == 3
    assert all((a != b).any() for a, b in pairwise(squares))
    assert np.array_equal(files.shaped("square").decode(6), files.decode(6))


@pytest.fixture
def uneven(tmp_path: Path, picture: Picture) -> FilePixels:
    sizes = [(12, 10), (7, 9), (20, 5)]
    paths = [picture(tmp_path / f"{n}.png", seed=n, size=size) for n, size in enumerate(sizes)]
    return FilePixels(tuple(paths), tmp_path / "cache")


def holds(images: WholeImages, paths: tuple[Path, ...]) -> bool:
    assert len(images) == len(paths)
    return all(np.array_equal(images[row], whole(path, 99)) for row, path in enumerate(paths))


def test_whole_images_are_decoded_once_and_in_order(
    uneven: FilePixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holds(uneven.decode_whole(99), uneven.paths)
    assert holds(uneven.take(np.array([2, 0])).decode_whole(99), (uneven.paths[2], uneven.paths[0]))
    expected = [np.array(whole(path, 99)) for path in uneven.paths]
    monkeypatch.setattr("bench.benchmarks.pixels.upright", None)
    again = uneven.decode_whole(99)
    assert all(np.array_equal(again[row], image) for row, image in enumerate(expected))
    assert isinstance(again.flat, np.memmap)


@pytest.mark.parametrize("damage", ["truncated", "longer", "foreign", "empty", "other shape", "other table"])
def test_a_damaged_cache_of_whole_images_is_rebuilt(damage: str, uneven: FilePixels) -> None:
    uneven.decode_whole(99)
    [cached] = uneven.cache.iterdir()
    content = cached.read_bytes()
    if damage == "other shape":
        np.save(cached, np.zeros((3, 8, 4, 6), np.uint8))
    else:
        table = content[:-1] + b"\x01"
        cuts = {"truncated": content[:-1], "longer": content + b"x", "foreign": b"hello", "empty": b""}
        cached.write_bytes({**cuts, "other table": table}[damage])
    assert holds(uneven.decode_whole(99), uneven.paths)
    assert cached.read_bytes() == content


def test_whole_images_stay_in_memory_where_the_cache_cannot_be_written(uneven: FilePixels) -> None:
    uneven.cache.write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="cannot be stored in"):
        images = uneven.decode_whole(99)
    assert holds(images, uneven.paths)


def test_a_broken_file_among_whole_images_is_named(uneven: FilePixels) -> None:
    uneven.paths[1].write_text("no image")
    with pytest.raises(UsageError, match=r"1 of 3 images cannot be decoded.*\n  .*1\.png \(not an image"):
        uneven.decode_whole(99)
    assert list(uneven.cache.iterdir()) == []
