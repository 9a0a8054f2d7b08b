"""A prompt method in a tiny ViT, random in every parameter, as if it had learnt three experiences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from methods.base import Method
from methods.registry import METHODS
from tests.conftest import deep_vit, synthetic

NAMES = ("l2p", "dualprompt", "coda-prompt")
EXPERIENCES = ((4, 1), (0, 5), (2, 3))


def stream_of(experiences: int) -> Any:
    """As much of a strategy as `begin` and `end` look at."""
    return SimpleNamespace(experience=SimpleNamespace(origin_stream=range(experiences)))


def grown(name: str, model: Any, classes: Any = EXPERIENCES, **options: Any) -> Method:
    """The method after so many experiences in which nothing was learnt."""
    method = METHODS[name].load()(**options)
    method.attach(model)
    for group in classes:
        method.start_experience(model, group)
        method.begin(stream_of(len(classes)))
        method.after_training_exp(stream_of(len(classes)))
    return method


def randomised(name: str, model: Any = None, **options: Any) -> tuple[Any, Method]:
    """A model in eval mode whose prompts, keys and heads are random: no two of them are alike."""
    model = deep_vit() if model is None else model
    method = grown(name, model.eval(), **options)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if method.owns(key):
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.5)
        model(images())
        for key, query in zip(keys_of(method), method.prompter.query, strict=False):
            key.copy_(query)  # else one key would be nearest to all images: their features are much alike
    return model, method


def keys_of(method: Any) -> list[torch.Tensor]:
    """The keys that queries are matched with; CODA-Prompt matches none."""
    return list(getattr(method.prompter, "keys", []))


def images(per_class: int = 2) -> torch.Tensor:
    return synthetic(per_class=per_class, seed=3)[0]
