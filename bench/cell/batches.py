"""From uint8 images in memory to a model's input: cropping, resizing, augmenting and normalising by batch.

Images are decoded once. Cropping, mirroring and resizing happen on the model's device. Random numbers are
drawn on the CPU, so that they are the same on every device and for every method. The protocol's geometry:

- square: images are stored as central squares (bicubic, antialiased). Crops are taken from the square, by one
  resampling of the batch, at any position, not antialiased.
- whole: as torchvision does it on PIL images, and so CODA-Prompt and InfLoRA. Training crops are boxes of
  pixels of the whole image, resized one by one, bilinear and antialiased. Test images are resized by their
  shorter side (bilinear, antialiased), then cropped in the centre.
- squash: as L2P's and DualPrompt's code does it in TensorFlow. The whole image is resized to a square,
  whatever its aspect (bilinear, not antialiased, rounded down to bytes); training crops are boxes of pixels
  of this square, resized bilinear and not antialiased. Test images are cropped in the centre of the square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Geometry = Literal["square", "whole", "squash"]

CROP_AREA = 0.08  # torchvision's default least share of the image, used by CODA-Prompt and InfLoRA
SMALL_CROP_AREA = 0.05  # L2P and DualPrompt
RESIZED_CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
SQUASH_RATIO = (0.75, 1.33)  # TensorFlow's default

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
        geometry: of the protocol.
    """

    size: int
    crop: float
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    geometry: Geometry = "square"

    def stack(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Items of the data set -> uint8 (B, H, W, 3) and labels (B,), on the device."""
        x = torch.stack([image for image, *_ in items])
        return x.to(self.device, non_blocking=True), self.labels(items)

    def labels(self, items: Sequence[Item]) -> Tensor:
        """The labels (B,) of the items, on the device."""
        return torch.tensor([label for _, label, *_ in items]).to(self.device, non_blocking=True)

    def rows(self, items: Sequence[Item]) -> Tensor:
        """The rows (B,) of the items, on the device."""
        return torch.tensor([row for _, _, row, *_ in items]).to(self.device, non_blocking=True)

    def view(self, x: Tensor) -> Tensor:
        """The central view, (B, 3, S, S) in [0, 1], of images stored as squares, uint8 (B, H, H, 3)."""
        x = enlarged(x, self.uncropped) if self.geometry == "squash" else x
        return central(unit(x), self.crop, self.size)

    @property
    def uncropped(self) -> int:
        """Side, in pixels, of an image whose central `crop` has the input size."""
        return round(self.size / self.crop)

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
        x = pipeline.normalise(pipeline.view(x))
        return x, y, rows, torch.zeros_like(rows, dtype=torch.bool)

    return collate


def clean_whole(pipeline: Pipeline) -> Callable[[Sequence[Item]], Batch]:
    """As `clean`, of images that may be stored whole: these are resized one by one."""

    def collate(items: Sequence[Item]) -> Batch:
        views = [centred(image.to(pipeline.device), pipeline) for image, *_ in items]
        x, rows = pipeline.normalise(torch.cat(views)), pipeline.rows(items)
        return x, pipeline.labels(items), rows, torch.zeros_like(rows, dtype=torch.bool)

    squares = clean(pipeline)
    return lambda items: (squares if _squares(items, pipeline.uncropped) else collate)(items)


def flipped(pipeline: Pipeline, rng: torch.Generator) -> Callable[[Sequence[Item]], Batch]:
    """As `clean`, with half of the images mirrored."""

    def collate(items: Sequence[Item]) -> Batch:
        x, y = pipeline.stack(items)
        mirror = coins(len(x), rng).to(x.device)
        return _mirrored(pipeline.view(x), mirror, pipeline), y, pipeline.rows(items), mirror

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


def cropped_whole(
    pipeline: Pipeline, rng: torch.Generator, smallest: float = CROP_AREA
) -> Callable[[Sequence[Item]], Batch]:
    """torchvision's RandomResizedCrop of whole images, half of them mirrored."""

    def collate(items: Sequence[Item]) -> Batch:
        sizes = torch.tensor([image.shape[:2] for image, *_ in items])
        boxes, mirror = pixel_boxes(sizes, rng, smallest), coins(len(items), rng)
        x = _crops([image for image, *_ in items], boxes, pipeline, antialias=True)
        return _mirrored(x, mirror, pipeline), pipeline.labels(items)

    return collate


def cropped_squashed(
    pipeline: Pipeline, rng: torch.Generator, smallest: float = CROP_AREA
) -> Callable[[Sequence[Item]], Batch]:
    """TensorFlow's random crops of squashed squares, half of them mirrored."""

    def collate(items: Sequence[Item]) -> Batch:
        x, y = pipeline.stack(items)
        x = enlarged(x, pipeline.uncropped)
        boxes, mirror = squash_boxes(len(x), x.shape[1], rng, smallest), coins(len(x), rng)
        x = _crops(x, boxes, pipeline, antialias=False)
        return _mirrored(x, mirror, pipeline), y

    return collate


def plain(pipeline: Pipeline, rng: torch.Generator) -> Callable[[Sequence[Item]], Batch]:
    """No augmentation: for images whose mirror image is another class, such as digits."""
    return clean(pipeline)


def _augmentations(crops: Callable[..., Callable[[Sequence[Item]], Batch]]) -> dict[str, Augmentation]:
    return {
        "none": plain,
        "flip": flipped,
        "crop-flip": crops,
        "small-crop-flip": partial(crops, smallest=SMALL_CROP_AREA),
    }


#: The augmentations, and the collate functions of an evaluation, by geometry.
AUGMENTATIONS: dict[Geometry, dict[str, Augmentation]] = {
    "square": _augmentations(cropped),
    "whole": _augmentations(cropped_whole),
    "squash": _augmentations(cropped_squashed),
}
CLEAN: dict[Geometry, Callable[[Pipeline], Callable[[Sequence[Item]], Batch]]] = {
    "square": clean,
    "whole": clean_whole,
    "squash": clean,
}


def _squares(items: Sequence[Item], side: int) -> bool:
    """Whether all images are squares of one size, up to `side`."""
    (height, width, _), *others = {tuple(image.shape) for image, *_ in items}
    return not others and height == width <= side


def _mirrored(x: Tensor, mirror: Tensor, pipeline: Pipeline) -> Tensor:
    """The model's input from (B, 3, S, S) in [0, 1], with the images of `mirror` (B,) mirrored."""
    return pipeline.normalise(torch.where(mirror.to(x.device)[:, None, None, None], x.flip(3), x))


def enlarged(x: Tensor, side: int) -> Tensor:
    """uint8 (B, H, H, 3), resized (bilinear, rounded down) to `side` pixels if they are smaller."""
    if x.shape[1] >= side:
        return x
    y = F.interpolate(x.permute(0, 3, 1, 2).float(), (side, side), mode="bilinear", align_corners=False)
    return y.byte().permute(0, 2, 3, 1)


def centred(image: Tensor, pipeline: Pipeline) -> Tensor:
    """torchvision's Resize and CenterCrop of a uint8 (H, W, 3): (1, 3, S, S) in [0, 1]."""
    height, width = image.shape[:2]
    short, target, size = min(height, width), pipeline.uncropped, pipeline.size
    sides = [target if side == short else target * side // short for side in (height, width)]
    x = unit(image[None])
    if sides != [height, width]:
        x = F.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)
    top, left = (round((side - size) / 2) for side in sides)
    return x[:, :, top : top + size, left : left + size]


def resized_crop(image: Tensor, box: Sequence[int], pipeline: Pipeline, *, antialias: bool) -> Tensor:
    """The box (left, top, width, height) of a uint8 (H, W, 3), resized: (1, 3, S, S) in [0, 1]."""
    left, top, width, height = box
    x = unit(image[None, top : top + height, left : left + width].to(pipeline.device, non_blocking=True))
    size = (pipeline.size, pipeline.size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=antialias)


def _crops(images: Iterable[Tensor], boxes: Tensor, pipeline: Pipeline, *, antialias: bool) -> Tensor:
    """One resized crop of each image, by its box: (B, 3, S, S) in [0, 1]."""
    pairs = zip(images, boxes.tolist(), strict=True)
    return torch.cat([resized_crop(image, box, pipeline, antialias=antialias) for image, box in pairs])


def unit(x: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [0, 1]."""
    return x.permute(0, 3, 1, 2).float().div_(255.0)


def central(x: Tensor, crop: float, size: int) -> Tensor:
    """The central `crop` share of square images (B, 3, H, H), resized to (B, 3, size, size)."""
    if x.shape[-1] < (uncropped := round(size / crop)):
        x = F.interpolate(x, (uncropped, uncropped), mode="bilinear", align_corners=False)
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
    boxes = torch.stack([draws[2] * (1 - width), draws[3] * (1 - height), width, height], -1)
    return _first_fitting(boxes, fits, torch.tensor([0.0, 0.0, 1.0, 1.0]))


def _first_fitting(boxes: Tensor, fits: Tensor, otherwise: Tensor) -> Tensor:
    """Of the boxes (n, K, 4) the first of each row that `fits` (n, K), else `otherwise`; (n, 4)."""
    first = fits.int().argmax(1, keepdim=True)
    picked = boxes.gather(1, first[..., None].expand(-1, -1, 4)).squeeze(1)
    return torch.where(fits.any(1, keepdim=True), picked, otherwise)


def pixel_boxes(sizes: Tensor, rng: torch.Generator, low: float) -> Tensor:
    """Boxes (n, 4) of left, top, width, height in pixels, of images with `sizes` (n, 2), height and width.

    As torchvision's RandomResizedCrop: an area from `low` to 1 and an aspect ratio are drawn until the box
    fits, at most ten times; then it is the largest central box with a legal ratio.
    """
    draws = torch.rand(4, len(sizes), CROP_ATTEMPTS, generator=rng, dtype=torch.float64)
    h, w = (side[:, None].double() for side in sizes.unbind(1))
    area = h * w * (low + (1 - low) * draws[0])
    log_low, log_high = (math.log(r) for r in RESIZED_CROP_RATIO)
    ratio = torch.exp(log_low + (log_high - log_low) * draws[1])
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width > 0) & (width <= w) & (height > 0) & (height <= h)
    left, top = (draws[2] * (w - width + 1)).floor(), (draws[3] * (h - height + 1)).floor()
    boxes = torch.stack([left, top, width, height], -1)
    return _first_fitting(boxes, fits, _largest_boxes(sizes)).long()


def _largest_boxes(sizes: Tensor) -> Tensor:
    """The largest central boxes (n, 4) with a legal aspect ratio."""
    height, width = sizes.double().unbind(1)
    narrowest, widest = RESIZED_CROP_RATIO
    w = torch.minimum(width, (height * widest).round())
    h = torch.minimum(height, (width / narrowest).round())
    return torch.stack([((width - w) / 2).floor(), ((height - h) / 2).floor(), w, h], 1)


def squash_boxes(n: int, side: int, rng: torch.Generator, low: float) -> Tensor:
    """Boxes (n, 4) of left, top, width, height in pixels, of squares of `side` pixels.

    As TensorFlow's sample_distorted_bounding_box, up to a pixel: an aspect ratio is drawn, then a height,
    uniform between those at which the area is `low` and the box no longer fits. Areas are therefore smaller
    than torchvision's, which draws the area itself.
    """
    draws = torch.rand(4, n, generator=rng, dtype=torch.float64)
    ratio = SQUASH_RATIO[0] + (SQUASH_RATIO[1] - SQUASH_RATIO[0]) * draws[0]
    most = torch.minimum((side / ratio.clamp_min(1)).floor(), (side / ratio.sqrt()).round()).clamp_max(side)
    least = torch.minimum((side * (low / ratio).sqrt()).round().clamp_min(1), most)
    height = least + (draws[1] * (most - least + 1)).floor()
    width = (height * ratio).round().clamp(1, side)
    left, top = (draws[2] * (side - width)).floor(), (draws[3] * (side - height)).floor()
    return torch.stack([left, top, width, height], 1).long()


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
