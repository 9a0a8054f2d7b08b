"""Batches: geometry, normalisation, and random numbers that are the same for every method."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as on_pil
from torchvision.transforms.v2 import functional as reference

from bench.cell.batches import (
    AUGMENTATIONS,
    CLEAN,
    CROP_AREA,
    CROP_ATTEMPTS,
    SMALL_CROP_AREA,
    Pipeline,
    central,
    clean,
    pixel_boxes,
    random_boxes,
    resample,
    resized_crop,
    squash_boxes,
    unit,
)

CPU = torch.device("cpu")
RAW = Pipeline(8, 1.0, (0.0,) * 3, (1.0,) * 3, CPU)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def items(n: int = 6, side: int = 8) -> list[tuple[torch.Tensor, int, int]]:
    pixels = torch.randint(0, 256, (n, side, side, 3), generator=rng(), dtype=torch.uint8)
    return [(image, label, 10 + label) for label, image in enumerate(pixels)]


def test_clean_batches_at_the_stored_size_are_the_pixels_over_255():
    batch = items()
    x, y, rows, mirrored = clean(RAW)(batch)
    torch.testing.assert_close(
        x * 255, torch.stack([image for image, *_ in batch]).permute(0, 3, 1, 2).float()
    )
    assert y.tolist() == list(range(6))
    assert rows.tolist() == list(range(10, 16))
    assert not mirrored.any()


def test_unit_normalisation_keeps_the_range_and_the_backbones_own_is_applied():
    x, *_ = clean(RAW)(items())
    assert x.min() >= 0
    assert 0.9 < x.max() <= 1
    halves = Pipeline(8, 1.0, (0.5,) * 3, (0.5,) * 3, CPU)
    torch.testing.assert_close(clean(halves)(items())[0], (x - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("side", "crop", "size"), [(16, 0.875, 14), (32, 1.0, 64), (32, 1.0, 8), (20, 0.5, 5)]
)
def test_the_central_crop_is_cut_and_resized_like_torchvisions(side, crop, size):
    x = torch.rand(2, 3, side, side)
    cut = reference.center_crop(x, [round(side * crop)] * 2)
    expected = reference.resize(cut, [size, size], antialias=True)
    torch.testing.assert_close(central(x, crop, size), expected, atol=1e-5, rtol=1e-4)


def test_the_whole_box_gives_the_image_and_a_mirrored_box_its_mirror_image():
    x = torch.rand(2, 3, 8, 8)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    straight = resample(x, whole, torch.tensor([False, False]), 8)
    torch.testing.assert_close(straight, x, atol=1e-5, rtol=1e-5)
    one = resample(x, whole, torch.tensor([False, True]), 8)
    torch.testing.assert_close(one[0], x[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one[1], x[1].flip(2), atol=1e-5, rtol=1e-5)


def test_a_box_is_the_crop_torchvision_would_take():
    x = torch.rand(1, 3, 16, 16)
    box = torch.tensor([[4 / 16, 2 / 16, 8 / 16, 12 / 16]])  # left, top, width, height
    expected = reference.resized_crop(x, 2, 4, 12, 8, [24, 24], antialias=False)
    got = resample(x, box, torch.tensor([False]), 24)
    # Only the rim differs: there the crop ends for torchvision, while we still see the image beyond it.
    torch.testing.assert_close(got[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("smallest", [CROP_AREA, SMALL_CROP_AREA])
def test_boxes_are_inside_and_their_areas_are_distributed_as_torchvisions(smallest):
    boxes = random_boxes(4000, rng(), smallest)
    left, top, width, height = boxes.unbind(1)
    assert (boxes >= 0).all()
    assert (left + width <= 1 + 1e-6).all()
    assert (top + height <= 1 + 1e-6).all()
    ratio = width / height
    assert ratio.min() > 0.74
    assert ratio.max() < 1.34
    torch.manual_seed(0)
    image = torch.zeros(3, 1000, 1000)
    theirs = [RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    areas = torch.tensor([h * w / 1e6 for _, _, h, w in theirs])
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert (width * height).min() == pytest.approx(smallest, abs=5e-3)
    assert (areas.quantile(levels) - (width * height).quantile(levels)).abs().max() < 0.03
    assert CROP_ATTEMPTS == 10


@pytest.mark.parametrize("geometry", AUGMENTATIONS)
@pytest.mark.parametrize("name", AUGMENTATIONS["square"])
def test_an_augmentation_follows_its_random_stream_and_nothing_else(name, geometry):
    batch, augment = items(64), AUGMENTATIONS[geometry][name]
    pipeline = replace(RAW, geometry=geometry)
    torch.manual_seed(1)
    first, *_ = augment(pipeline, rng(5))(batch)
    torch.manual_seed(2)
    again, *_ = augment(pipeline, rng(5))(batch)
    other, *_ = augment(pipeline, rng(6))(batch)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "none")


def test_flip_mirrors_about_half_of_the_images():
    batch = items(400)
    x, *_ = clean(RAW)(batch)
    flipped, *_ = AUGMENTATIONS["square"]["flip"](RAW, rng())(batch)
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], x[~mirrored])
    assert 150 < mirrored.sum() < 250


def test_unit_moves_channels_first():
    x = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(unit(x).flatten(), torch.tensor([0.0, 0.2, 1.0]))


# ---- whole images, as torchvision crops them from PIL images ---------------------------------------

WHOLE = replace(RAW, size=14, crop=0.875, geometry="whole")
BILINEAR = on_pil.InterpolationMode.BILINEAR


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (height, width, 3), generator=rng(seed), dtype=torch.uint8)


@pytest.mark.parametrize(
    "box",  # left, top, width, height
    [(0, 0, 90, 50), (3, 5, 60, 45), (70, 10, 20, 31), (40, 20, 5, 6), (11, 2, 14, 14)],
)
def test_a_crop_is_torchvisions_of_the_whole_pil_image_to_a_level(box):
    """PIL rounds to bytes after each of its two passes, this does not: at most 1.01 of 255 levels."""
    image = picture(50, 90)
    left, top, width, height = box
    pil = Image.fromarray(image.numpy())
    expected = on_pil.to_tensor(on_pil.resized_crop(pil, top, left, height, width, [14, 14], BILINEAR))
    got = resized_crop(image, box, WHOLE, antialias=True)[0]
    assert (got - expected).abs().max() <= 1.01 / 255
    plain = resized_crop(image, box, WHOLE, antialias=False)[0]
    assert ((plain - expected).abs().max() > 2 / 255) == (width > 14 or height > 14)


@pytest.mark.parametrize("smallest", [CROP_AREA, SMALL_CROP_AREA])
@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (400, 400), (100, 390)])
def test_boxes_of_pixels_are_distributed_as_torchvisions(height, width, smallest):
    sizes = torch.tensor([[height, width]] * 3000)
    left, top, w, h = pixel_boxes(sizes, rng(), smallest).unbind(1)
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    top_, left_, h_, w_ = (torch.tensor(side).double() for side in zip(*theirs, strict=True))
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).double()
    for ours, reference_values, scale in (
        (w * h, w_ * h_, height * width),
        (left, left_, width),
        (top, top_, height),
        ((w / h).log(), (w_ / h_).log(), 1.0),
    ):
        difference = ours.double().quantile(levels) - reference_values.quantile(levels)
        assert difference.abs().max() < 0.04 * scale


@pytest.mark.parametrize(("height", "width"), [(20, 1000), (1000, 20), (3, 100)])
def test_where_no_box_fits_it_is_torchvisions_central_one(height, width):
    top, left, h, w = RandomResizedCrop.get_params(torch.zeros(3, height, width), [0.9, 1], [3 / 4, 4 / 3])
    assert pixel_boxes(torch.tensor([[height, width]]), rng(), 0.9).tolist() == [[left, top, w, h]]


def test_an_evaluation_of_whole_images_is_torchvisions_and_independent_of_the_batch():
    images = [picture(50, 90), picture(16, 16, 1), picture(31, 20, 2), picture(40, 40, 3), picture(8, 8, 4)]
    batch = [(image, label, 10 + label) for label, image in enumerate(images)]
    x, y, rows, mirrored = CLEAN["whole"](WHOLE)(batch)
    assert rows.tolist() == list(range(10, 15))
    assert not mirrored.any()
    assert y.tolist() == list(range(5))
    for image, got in zip(images, x, strict=True):
        pil = on_pil.resize(Image.fromarray(image.numpy()), [16], BILINEAR)
        expected = on_pil.to_tensor(on_pil.center_crop(pil, [14]))
        assert (got - expected).abs().max() <= 1.01 / 255
        alone, *_ = CLEAN["whole"](WHOLE)([(image, 0, 0)])
        torch.testing.assert_close(alone[0], got)


def test_crops_of_a_batch_of_uneven_images_are_the_boxes_and_the_coins_of_the_stream():
    images = [picture(50, 90), picture(31, 20, 2)]
    x, y = AUGMENTATIONS["whole"]["crop-flip"](WHOLE, rng(3))([(image, 7, 0) for image in images])
    stream = rng(3)
    boxes = pixel_boxes(torch.tensor([[50, 90], [31, 20]]), stream, CROP_AREA).tolist()
    mirrored = (torch.rand(2, generator=stream) < 0.5).tolist()
    for image, box, mirror, got in zip(images, boxes, mirrored, x, strict=True):
        expected = resized_crop(image, box, WHOLE, antialias=True)[0]
        torch.testing.assert_close(got, expected.flip(2) if mirror else expected)
    assert y.tolist() == [7, 7]


# ---- squares that the whole image was resized to, as TensorFlow does it --------------------------------

SQUASH = replace(RAW, size=14, crop=0.875, geometry="squash")


def test_a_small_image_is_enlarged_to_bytes_before_it_is_cropped():
    """CIFAR-100 in L2P's code: 32 -> 256 pixels, uint8, then the central 224."""
    image = picture(8, 8)
    x, *_ = CLEAN["squash"](SQUASH)([(image, 0, 0)])
    enlarged = reference.resize(image.permute(2, 0, 1).float(), [16, 16], antialias=False)
    torch.testing.assert_close(x[0] * 255, enlarged.floor()[:, 1:15, 1:15])


def test_boxes_of_a_squashed_square_have_heights_as_tensorflow_draws_them():
    left, top, width, height = squash_boxes(20000, 256, rng(), SMALL_CROP_AREA).double().unbind(1)
    for start, side in ((left, width), (top, height)):
        assert (start >= 0).all()
        assert (side >= 1).all()
        assert (start + side <= 256).all()
    ratio = width / height
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    area = width * height / 256**2
    assert area.min() == pytest.approx(SMALL_CROP_AREA, abs=3e-3)
    for low, high in ((0.75, 0.80), (0.95, 1.05), (1.28, 1.33)):  # heights are uniform at every ratio
        middle = (low + high) / 2
        least, most = 256 * math.sqrt(SMALL_CROP_AREA / middle), 256 / max(middle, 1)
        heights = height[(ratio > low) & (ratio < high)]
        share = np.histogram(heights, 4, (least, most))[0] / len(heights)
        assert np.abs(share - 0.25).max() < 0.06


def test_a_crop_of_a_squashed_square_is_not_antialiased():
    pipeline = replace(SQUASH, crop=14 / 32)
    images = [picture(32, 32, seed) for seed in range(4)]
    x, _ = AUGMENTATIONS["squash"]["small-crop-flip"](pipeline, rng(3))([(image, 0, 0) for image in images])
    stream = rng(3)
    boxes = squash_boxes(4, 32, stream, SMALL_CROP_AREA).tolist()
    mirrored = (torch.rand(4, generator=stream) < 0.5).tolist()
    assert max(height for _, _, _, height in boxes) > 14
    for image, box, mirror, got in zip(images, boxes, mirrored, x, strict=True):
        expected = resized_crop(image, box, pipeline, antialias=False)[0]
        torch.testing.assert_close(got, expected.flip(2) if mirror else expected)
