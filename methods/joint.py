"""Joint training on the images of all tasks at once, as `finetune` adapts the backbone: the upper reference.

Not continual learning: the images of every experience are kept, and training waits for the last one. The
cross-entropy is over all classes, so no class is learnt without the others to compare it with.
"""

from __future__ import annotations

from typing import ClassVar

from methods.avalanche_parts import concat_datasets
from methods.errors import UsageError
from methods.finetune import Finetune, FinetuneHyper
from methods.head import HeadInit
from methods.registry import register
from methods.strategy import ExperienceLike, ImageData, StrategyLike

#: Options that say what becomes of an adapter in later experiences, and their only legal value here.
SINGLE_TRAINING = {"gate_reset": "none", "spaces_after_first": "train"}


@register("joint")
class Joint(Finetune):
    """Trains once, at the last experience, on the images of all experiences."""

    trains_jointly: ClassVar[bool] = True

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__(head_init=head_init, **options)
        self.images: list[ImageData] = []

    @classmethod
    def check(cls, hyper: FinetuneHyper, experiences: int) -> None:
        """Refuse what `finetune` refuses, and options about later experiences."""
        super().check(hyper, experiences)
        for option, legal in SINGLE_TRAINING.items():
            if getattr(hyper, option) != legal:
                raise UsageError(
                    f"{cls.name}.{option} is {getattr(hyper, option)}, but {cls.name} trains once, so that "
                    f"no later task follows; legal: {legal}"
                )

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
