"""From uint8 images in memory to a model's input: cropping, resizing, augmenting and normalising by batch.

Images are decoded once and stored as squares. Cropping, mirroring and resizing of a batch are one resampling
on the model's device. Its random numbers are drawn on the CPU, so that they are the same on every device and
for every method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_AREA = 0.08  # torchvision's default least share of the image, used by CODA-Prompt and InfLoRA
SMALL_CROP_AREA = 0.05  # L2P and DualPrompt
RESIZED_CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10

#: Image, label and row of an image, as `stream.RowDataset` has them.
Item = tuple[Tensor, int, int]
#: Images and labels; where images are not cropped at random, also their rows and whether each is mirrored.
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Pipeline:
    """How stored images become the model's input.

    Attributes:
        size: side of the input in pixels.
        crop: share of the stored side that an evaluation keeps, from the centre.
        mean, std: normalisation per channel, for inputs in [0, 1].
        device: where the model is.
    """

    size: int
    crop: float
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device

    def stack(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Items of the data set -> uint8 (B, H, W, 3) and labels (B,), on the device."""
        x = torch.stack([image for image, *_ in items])
        y = torch.tensor([label for _, label, *_ in items])
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def rows(self, items: Sequence[Item]) -> Tensor:
        """The rows (B,) of the items, on the device."""
        return torch.tensor([row for _, _, row, *_ in items]).to(self.device, non_blocking=True)

    def normalise(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> the model's input."""
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(3, 1, 1)
        return (x - mean) / std


#: Makes the collate function of training; its random numbers come from the generator.
Augmentation = Callable[[Pipeline, torch.Generator], Callable[[Sequence[Item]], Batch]]


def clean(pipeline: Pipeline) -> Callable[[Sequence[Item]], Batch]:
    """The collate function of an evaluation: the central crop at the input size."""

    def collate(items: Sequence[Item]) -> Batch:
        x, y = pipeline.stack(items)
        rows = pipeline.rows(items)
        x = pipeline.normalise(central(unit(x), pipeline.crop, pipeline.size))
        return x, y, rows, torch.zeros_like(rows, dtype=torch.bool)

    return collate


def flipped(pipeline: Pipeline, rng: torch.Generator) -> Callable[[Sequence[Item]], Batch]:
    """As `clean`, with half of the images mirrored."""

    def collate(items: Sequence[Item]) -> Batch:
        x, y = pipeline.stack(items)
        x = central(unit(x), pipeline.crop, pipeline.size)
        mirror = coins(len(x), rng).to(x.device)
        x = pipeline.normalise(torch.where(mirror[:, None, None, None], x.flip(3), x))
        return x, y, pipeline.rows(items), mirror

    return collate


def cropped(
    pipeline: Pipeline, rng: torch.Generator, smallest: float = CROP_AREA
) -> Callable[[Sequence[Item]], Batch]:
    """Random resized crops, half of them mirrored; a crop has at least `smallest` of the image's area."""

    def collate(items: Sequence[Item]) -> Batch:
        x, y = pipeline.stack(items)
        boxes, mirror = random_boxes(len(x), rng, smallest), coins(len(x), rng)
        return pipeline.normalise(resample(unit(x), boxes, mirror, pipeline.size)), y

    return collate


def plain(pipeline: Pipeline, rng: torch.Generator) -> Callable[[Sequence[Item]], Batch]:
    """No augmentation: for images whose mirror image is another class, such as digits."""
    return clean(pipeline)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": plain,
    "flip": flipped,
    "crop-flip": cropped,
    "small-crop-flip": partial(cropped, smallest=SMALL_CROP_AREA),
}


def unit(x: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [0, 1]."""
    return x.permute(0, 3, 1, 2).float().div_(255.0)


def central(x: Tensor, crop: float, size: int) -> Tensor:
    """The central `crop` share of square images (B, 3, H, H), resized to (B, 3, size, size)."""
    side = round(x.shape[-1] * crop)
    start = (x.shape[-1] - side) // 2
    x = x[:, :, start : start + side, start : start + side]
    if side == size:
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=side > size)


def coins(n: int, rng: torch.Generator) -> Tensor:
    """n fair coins, bool (n,)."""
    return torch.rand(n, generator=rng) < 0.5


def random_boxes(n: int, rng: torch.Generator, low: float) -> Tensor:
    """n boxes (n, 4) of left, top, width, height, as shares of the image's side; areas from `low` to 1.

    As torchvision's RandomResizedCrop: an area and an aspect ratio are drawn until the box fits, at most ten
    times; then the box is the whole image.
    """
    draws = torch.rand(4, n, CROP_ATTEMPTS, generator=rng)
    area = low + (1 - low) * draws[0]
    log_low, log_high = (math.log(r) for r in RESIZED_CROP_RATIO)
    ratio = torch.exp(log_low + (log_high - log_low) * draws[1])
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)
    boxes = torch.stack([draws[2] * (1 - width), draws[3] * (1 - height), width, height], -1)
    picked = boxes.gather(1, first[..., None].expand(-1, -1, 4)).squeeze(1)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0])
    return torch.where(fits.any(1, keepdim=True), picked, whole)


def resample(x: Tensor, boxes: Tensor, mirror: Tensor, size: int) -> Tensor:
    """Crop (B, 3, H, H) to `boxes` (B, 4), mirror the images of `mirror` (B,), resize to `size` pixels."""
    left, top, width, height = boxes.to(x.device).unbind(1)
    sign = 1.0 - 2.0 * mirror.to(x.device, torch.float32)
    zero = torch.zeros_like(left)
    theta = torch.stack(
        [
            torch.stack([sign * width, zero, 2 * left + width - 1], 1),
            torch.stack([zero, height, 2 * top + height - 1], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [len(x), 3, size, size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
