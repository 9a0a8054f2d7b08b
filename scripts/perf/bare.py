"""A bare torch loop that passes so many images through a plain ViT, in a process of its own.

    python -m scripts.perf.bare WORK

`end_to_end` starts it beside a command of the harness. WORK is a `Work` as JSON; the output is a `Times`. It
imports nothing of the project, so that its start is that of torch and timm. Images are in memory, weights are
random, and only the classifier and, where gradients pass through the backbone, the position embedding train.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

#: Images in memory; the loop goes through them again and again.
IMAGES = 256


@dataclass(frozen=True)
class Work:
    """What is passed through the ViT, and where.

    Attributes:
        architecture: arguments of timm's VisionTransformer, or the name of one of timm's.
        image_size: pixels.
        classes: outputs of the classifier.
        batch, eval_batch: images per pass in training and in evaluation.
        stepped: images in training steps, each a pass with a gradient.
        passed: images that are passed without a gradient in training.
        evaluated: images that are passed in evaluation.
        through: which part the gradient of a step passes through.
    """

    architecture: dict[str, Any] | str
    image_size: int
    classes: int
    precision: str
    device: str
    threads: int
    batch: int
    eval_batch: int
    stepped: int
    passed: int
    evaluated: int
    through: Literal["classifier", "backbone"]

    @property
    def passes(self) -> int:
        """Images that are passed in all."""
        return self.stepped + self.passed + self.evaluated


@dataclass(frozen=True)
class Times:
    """Seconds of the passes of training and of those of evaluation."""

    training: float
    evaluation: float


def run(work: Work) -> Times:
    """Make all passes."""
    device = torch.device(work.device)
    model, images = build(work).to(device), torch.randint(0, 256, (IMAGES, 3, *[work.image_size] * 2))
    images, labels = images.to(device, torch.uint8), torch.arange(IMAGES, device=device) % work.classes
    optimizer = torch.optim.Adam(parameter for parameter in model.parameters() if parameter.requires_grad)

    def predict(rows: Tensor) -> Tensor:
        x = (images[rows].float() / 255 - 0.5) / 0.5
        with autocast(work):
            logits: Tensor = model(x)
        return logits.float()

    @torch.no_grad()
    def forward(rows: Tensor) -> None:
        predict(rows)

    def step(rows: Tensor) -> None:
        loss = F.cross_entropy(predict(rows), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def train() -> None:
        model.train()
        over(work.stepped, work.batch, step)
        over(work.passed, work.batch, forward)

    def evaluate() -> None:
        model.eval()
        over(work.evaluated, work.eval_batch, forward)

    return Times(seconds(train, device), seconds(evaluate, device))


def build(work: Work) -> VisionTransformer:
    """A ViT with random weights, of which nothing trains that a pass of the work does not need."""
    size, name = work.image_size, work.architecture
    if isinstance(name, str):
        model = timm.create_model(name, img_size=size, num_classes=work.classes)
    else:
        model = VisionTransformer(**{**name, "img_size": size, "num_classes": work.classes})
    model.requires_grad_(False).head.requires_grad_(True)
    if work.through == "backbone":  # the position embedding is in front of all blocks
        model.pos_embed.requires_grad_(True)
    return model


def autocast(work: Work) -> Any:
    """Mixed precision, if the work asks for it."""
    return torch.autocast(work.device, torch.bfloat16) if work.precision == "bf16" else nullcontext()


def over(images: int, batch: int, function: Callable[[Tensor], object]) -> None:
    """Call the function with the rows of one batch after another, so many images in all."""
    for rows in batches(images, batch):
        function(rows)


def batches(images: int, batch: int) -> Iterator[Tensor]:
    """Rows of the images in memory."""
    for start in range(0, images, batch):
        yield torch.arange(start, min(start + batch, images)) % IMAGES


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a function takes, until the device has finished."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", help="JSON")
    work = Work(**json.loads(parser.parse_args().work))
    torch.set_num_threads(work.threads)
    print(json.dumps(asdict(run(work))))


if __name__ == "__main__":
    main()
