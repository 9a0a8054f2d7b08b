"""All experiences at once with the LoRA of `finetune`: the upper reference.

Not continual learning: the images of every experience are kept, and training waits for the last one.
Cross-entropy is over all classes, so nothing is forgotten and nothing has to be told apart afterwards.
"""

from __future__ import annotations

from typing import Any, ClassVar

from avalanche.benchmarks.utils import concat_datasets

from methods.finetune import Finetune
from methods.registry import register


@register("joint")
class Joint(Finetune):
    """Trains once, at the last experience, on the images of all of them."""

    trains_jointly: ClassVar[bool] = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.images: list[Any] = []

    def after_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.images.append(strategy.adapted_dataset)
        if is_last(strategy.experience):
            strategy.adapted_dataset = concat_datasets(self.images)

    def begin(self, strategy: Any) -> None:
        self.current = tuple(strategy.model.head.columns.tolist())

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if not is_last(strategy.experience):
            strategy.stop_training()

    def frozen_after(self, task: int) -> tuple[str, ...]:
        """Nothing: every head is trained at the end."""
        return ()


def is_last(experience: Any) -> bool:
    """Whether the stream ends with this experience."""
    return bool(experience.current_experience == len(experience.origin_stream) - 1)
