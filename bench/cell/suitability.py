"""Whether methods can work with a backbone: asked before anything is run, with one image.

What is tried is what every cell does first: open the seams, replace the classifier, add the method's parts
for the first experience. Nothing is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from bench.spec import Cell
from methods.base import Method
from methods.errors import UsageError
from methods.registry import METHODS
from methods.vit import Plug, embed, open_seams

CHANNELS = 3
#: Largest difference between the features of the opened backbone and timm's own, relative to the largest one.
TOLERANCE = 1e-3


def check_cells(cells: Iterable[Cell], build: Callable[[Cell], Any]) -> None:
    """Refuse weights, image sizes and methods that do not suit their backbone; each pair is tried once.

    Args:
        build: makes the backbone of a cell.

    Raises:
        UsageError: naming the method, the backbone and what is in the way.
    """
    by_backbone: dict[tuple[str, int, str], dict[Any, Cell]] = {}
    for cell in cells:
        protocol = cell.protocol
        method = cell.method.name, cell.method.frozen_options, protocol.head_init
        backbone = protocol.backbone, protocol.image_size, protocol.gelu
        by_backbone.setdefault(backbone, {})[method] = cell
    for (tag, size, _), of_backbone in by_backbone.items():
        distinct = list(of_backbone.values())
        model = build(distinct[0])
        _try(f"the backbone {tag}", partial(check_opened, model, size))
        for cell in distinct:
            classes = range((cell.task_sizes or (1,))[0])
            _try(
                f"{cell.method.label} on the backbone {tag}",
                partial(check_method, cell, model, classes),
            )


def _try(what: str, check: Callable[[], None]) -> None:
    """Name in an error what was tried; of any type, because a cell would end by the same error."""
    try:
        check()
    except UsageError as error:
        raise UsageError(f"{what} cannot be used: {error}") from None
    except Exception as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"{what} cannot be used: {type(error).__name__}: {text}; choose another --backbone, or leave the "
            "method out"
        ) from error


@torch.no_grad()
def check_opened(model: Any, image_size: int) -> None:
    """Pass one image through a copy of the backbone with plugs that change nothing.

    Raises:
        UsageError: if its features are not timm's own, or its logits not one per class.
    """
    opened, image = copy.deepcopy(model), torch.zeros(1, CHANNELS, image_size, image_size)
    bare: Method[Any] = Method()
    bare.attach(opened)
    bare.start_experience(opened, (0, 1))
    for attention in open_seams(opened):
        attention.plug = Plug()
    expected, features = embed(model, image), embed(opened, image)
    if not torch.allclose(features, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())):
        raise UsageError("its attention is computed in another way than timm's standard attention")
    if opened(image).shape != (1, 2):
        raise UsageError(
            f"its classifier gives {tuple(opened(image).shape)} logits for an image of 2 classes"
        )


def check_method(cell: Cell, model: Any, classes: Sequence[int]) -> None:
    """Attach the cell's method to a copy of the backbone, and add its parts for an experience.

    No image is passed: some methods need the images of the experience before they can predict.
    """
    method = METHODS[cell.method.name].load()(head_init=cell.protocol.head_init, **cell.method.options)
    adapted = copy.deepcopy(model)
    method.attach(adapted)
    method.start_experience(adapted, tuple(classes))
