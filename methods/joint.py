"""Joint training on the images of all tasks at once, as `finetune` adapts the backbone: the upper reference.

Not continual learning: the images of every experience are kept, and training waits for the last one. The
cross-entropy is over all classes, so no class is learnt without the others to compare it with.
"""

from __future__ import annotations

from typing import ClassVar

from methods.avalanche_parts import concat_datasets
from methods.finetune import Finetune
from methods.head import HeadInit
from methods.registry import register
from methods.strategy import ExperienceLike, ImageData, StrategyLike


@register("joint")
class Joint(Finetune):
    """Trains once, at the last experience, on the images of all experiences."""

    trains_jointly: ClassVar[bool] = True

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__(head_init=head_init, **options)
        self.images: list[ImageData] = []

    def after_train_dataset_adaptation(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.images.append(strategy.adapted_dataset)
        if is_last(strategy.experience):
            strategy.adapted_dataset = concat_datasets(self.images)

    def begin(self, strategy: StrategyLike) -> None:
        super().begin(strategy)
        self.current = tuple(strategy.model.head.columns.tolist())

    def before_training_epoch(self, strategy: StrategyLike, **kwargs: object) -> None:
        if not is_last(strategy.experience):
            strategy.stop_training()

    def end(self, strategy: StrategyLike) -> None:
        if is_last(strategy.experience):
            super().end(strategy)

    def frozen_after(self, task: int) -> tuple[str, ...]:
        """Nothing: every head is trained at the end."""
        return ()


def is_last(experience: ExperienceLike) -> bool:
    """Whether the stream ends with this experience."""
    return experience.current_experience == len(experience.origin_stream) - 1
