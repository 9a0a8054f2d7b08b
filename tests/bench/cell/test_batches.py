"""Batches: geometry, normalisation, and random numbers that are the same for every method."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from bench.cell.batches import (
    AUGMENTATIONS,
    CROP_AREA,
    CROP_ATTEMPTS,
    SMALL_CROP_AREA,
    Pipeline,
    central,
    clean,
    random_boxes,
    resample,
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


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_follows_its_random_stream_and_nothing_else(name):
    batch = items(64)
    torch.manual_seed(1)
    first, *_ = AUGMENTATIONS[name](RAW, rng(5))(batch)
    torch.manual_seed(2)
    again, *_ = AUGMENTATIONS[name](RAW, rng(5))(batch)
    other, *_ = AUGMENTATIONS[name](RAW, rng(6))(batch)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "none")


def test_flip_mirrors_about_half_of_the_images():
    batch = items(400)
    x, *_ = clean(RAW)(batch)
    flipped, *_ = AUGMENTATIONS["flip"](RAW, rng())(batch)
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], x[~mirrored])
    assert 150 < mirrored.sum() < 250


def test_unit_moves_channels_first():
    x = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(unit(x).flatten(), torch.tensor([0.0, 0.2, 1.0]))
