"""The Avalanche strategy that methods plug into: Avalanche's callbacks, this project's data and precision."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.cell.batches import Batch, Item
from bench.cell.features import Features
from bench.cell.precision import autocast
from bench.cell.progress import Observer, ProgressUpdate
from methods.avalanche_parts import SupervisedTemplate
from methods.strategy import Plugin

Collate = Callable[[Sequence[Item]], Batch]
#: (step, steps per epoch, epochs) -> what the learning rate is multiplied by.
LrFactor = Callable[[int, int, int], float]


class Strategy(SupervisedTemplate):  # type: ignore[misc]
    """Avalanche's supervised strategy with batches made by collate functions, and mixed precision.

    Args:
        train_collate, eval_collate: items of the data set -> the model's input (see `bench.cell.batches`).
        statistics_collate: as `train_collate`, with a separate random stream, for passes over the training
            images that must not change the training.
        order: random stream of the order of the training images.
        drop_last: whether the last batch of an epoch is left out if it is smaller than the others; a data
            set smaller than a batch is one batch all the same.
        precision: "fp32", or "bf16" for autocast in the forward pass (weights stay in fp32).
        features: of the images by the frozen backbone, where they are kept.
        only_head: run only the classifier on images whose features are kept.
        test_experience: (m,) the experience of each test image, by row (`Split.test_experience`).
        settings: passed on to Avalanche.
    """

    def __init__(
        self,
        *,
        train_collate: Collate,
        eval_collate: Collate,
        statistics_collate: Collate,
        order: torch.Generator,
        precision: str,
        drop_last: bool = False,
        features: Features | None = None,
        only_head: bool = False,
        test_experience: Tensor | None = None,
        **settings: Any,
    ) -> None:
        with warnings.catch_warnings():  # Avalanche's metrics and loggers are not used
            warnings.filterwarnings("ignore", message="No loggers specified")
            super().__init__(evaluator=None, **settings)
        self.train_collate, self.eval_collate = train_collate, eval_collate
        self.statistics_collate = statistics_collate
        self.order, self.precision, self.drop_last = order, precision, drop_last
        self.features, self.only_head = features, only_head
        self.test_experience = torch.empty(0) if test_experience is None else test_experience
        #: Images whose features were read since the training of the experience began.
        self.features_read = 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed-precision context of every pass through the model."""
        return autocast(self.device, self.precision)

    def frozen_features(self, batch: Sequence[Tensor] | None = None) -> Tensor | None:
        """The features (B, D) of a batch by the frozen backbone; None if they are not kept.

        Args:
            batch: as the collate functions return it; by default the current one.
        """
        _, _, *origin = self.mbatch if batch is None else batch
        if self.features is None or not origin:
            return None
        features = self.features.of("train" if self.is_training else "test", *origin)
        self.features_read += 0 if features is None else len(features)
        return features

    def true_experience(self) -> Tensor:
        """(B,) the experience that each test image of the batch belongs to; negative if to none."""
        _, _, rows, *_ = self.mbatch
        return self.test_experience[rows]

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Predicted and true labels (n,) of the last evaluation, in the order of the data."""
        collector = next(plugin for plugin in self.plugins if isinstance(plugin, PredictionCollector))
        return torch.cat(collector.predicted), torch.cat(collector.true)

    def forward(self) -> Tensor:
        features = self.frozen_features() if self.only_head else None
        with self.autocast():
            logits = self.model(self.mb_x) if features is None else self.model.head(features)
        return logits.float()  # type: ignore[no-any-return]

    def make_optimizer(self, **kwargs: Any) -> None:
        # The method fills its optimiser; Avalanche would add the frozen parameters.
        self.optimized_param_id: dict[str, Tensor] = {}

    def make_train_dataloader(self, **kwargs: Any) -> None:
        self.dataloader = DataLoader(
            self.adapted_dataset,
            batch_size=self.train_mb_size,
            shuffle=True,
            drop_last=self.drop_last and len(self.adapted_dataset) >= self.train_mb_size,
            generator=self.order,
            collate_fn=self.train_collate,
        )

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        self.dataloader = DataLoader(
            self.adapted_dataset,
            batch_size=self.eval_mb_size,
            collate_fn=self.eval_collate,
            generator=torch.Generator(),  # by default, a loader draws from the global generator
        )


def cosine(step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning-rate factor of a step: a cosine from 1 to 0 over all steps of the experience."""
    return 0.5 * (1.0 + math.cos(math.pi * step / (steps_per_epoch * epochs)))


def coda_cosine(step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning-rate factor as in CODA-Prompt's and InfLoRA's code, constant within an epoch.

    cos(99 pi k / (200 (K - 1))) with k = max(epoch - 1, 0): the first two epochs run at the full rate,
    because the scheduler's constructor resets its counter, and the last one does not reach zero.
    """
    if epochs == 1:
        return 1.0
    k = max(step // steps_per_epoch - 1, 0)
    return math.cos(99 * math.pi * k / (200 * (epochs - 1)))


def constant(step: int, steps_per_epoch: int, epochs: int) -> float:
    """The full learning rate throughout."""
    return 1.0


SCHEDULES: dict[str, LrFactor] = {"cosine": cosine, "coda": coda_cosine, "constant": constant}


class Schedule(Plugin):
    """Sets the learning rate before each step: the rate at the start of the experience times a factor."""

    def __init__(self, factor: LrFactor) -> None:
        super().__init__()
        self.factor = factor

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_epochs == 0:
            self.base = [group["lr"] for group in strategy.optimizer.param_groups]
            self.step = 0

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        factor = self.factor(self.step, len(strategy.dataloader), strategy.train_epochs)
        for group, base in zip(strategy.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        self.step += 1


class DivergedError(RuntimeError):
    """The loss, or the logits of an image, are no longer finite numbers."""


class FiniteLoss(Plugin):
    """Stops a run whose loss is no longer finite.

    The losses stay on the device, and are read together from time to time and at the end of each epoch: to
    read one, the program waits until a GPU has done all that it was given.

    Args:
        every: seconds between two readings.

    Attributes:
        was_zero: whether the last experience had steps, and the loss was exactly zero at each of them.
    """

    was_zero = False

    def __init__(self, every: float) -> None:
        super().__init__()
        self.every = every

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.zero: set[bool] = set()
        self.unread: list[tuple[int, int, Tensor]] = []
        self.last_read = time.perf_counter()

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        clock = strategy.clock
        step = clock.train_exp_epochs + 1, clock.train_epoch_iterations + 1
        self.unread.append((*step, strategy.loss.detach().reshape(())))

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if time.perf_counter() - self.last_read >= self.every:
            self._read(strategy)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._read(strategy)  # before the method works with weights that may not be finite

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.was_zero = self.zero == {True}

    def _read(self, strategy: Any) -> None:
        """Read the losses since the last time.

        Raises:
            DivergedError: naming the first step whose loss is not finite.
        """
        unread, self.unread, self.last_read = self.unread, [], time.perf_counter()
        losses = torch.stack([loss for *_, loss in unread]).tolist() if unread else []
        for (epoch, step, _), loss in zip(unread, losses, strict=True):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss became {loss} in task {strategy.clock.train_exp_counter + 1}, epoch {epoch}, "
                    f"step {step}; a lower learning rate may help"
                )
            self.zero.add(loss == 0)


class FiniteLogits(Plugin):
    """Stops a run whose logits are not finite: a class would be predicted all the same, as if it were known.

    Minus infinity is legal for a class that the method rules out, but not for all classes at once.

    Args:
        class_names: by label.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = class_names

    def after_eval_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        highest = strategy.mb_output.amax(1)
        broken = ~highest.isfinite()
        if broken.any():
            label, value = strategy.mb_y[broken][0].item(), highest[broken][0].item()
            raise DivergedError(
                f"the logits became {value} in the evaluation after task {strategy.clock.train_exp_counter}, "
                f"on a test image of the class {self.class_names[label]}; a lower learning rate may help, "
                "where the method trains"
            )


class PredictionCollector(Plugin):
    """Collects the predicted and true labels of an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.predicted: list[Tensor] = []
        self.true: list[Tensor] = []

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.predicted, self.true = [], []

    def after_eval_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.predicted.append(strategy.mb_output.argmax(1).cpu())
        self.true.append(strategy.mb_y.cpu())


class ProgressReporter(Plugin):
    """Reports the progress of training to an observer.

    Args:
        observe: called at the start of each experience, and then at most once in `every` seconds.
        experiences: their number, for the messages.
    """

    def __init__(self, observe: Observer, experiences: int, every: float) -> None:
        super().__init__()
        self.observe, self.experiences, self.every = observe, experiences, every

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.reported, self.images = time.perf_counter(), 0
        self.observe(ProgressUpdate("learning", strategy.clock.train_exp_counter + 1, self.experiences))

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.images += len(strategy.mb_y)
        elapsed = time.perf_counter() - self.reported
        if elapsed >= self.every:
            self.observe(self._update(strategy, elapsed))
            self.reported, self.images = time.perf_counter(), 0

    def _update(self, strategy: Any, elapsed: float) -> ProgressUpdate:
        clock, steps = strategy.clock, len(strategy.dataloader)
        done = clock.train_exp_epochs * steps + clock.train_epoch_iterations + 1
        return ProgressUpdate(
            activity="learning",
            experience=clock.train_exp_counter + 1,
            experiences=self.experiences,
            epoch=clock.train_exp_epochs + 1,
            epochs=strategy.train_epochs,
            share=done / (steps * strategy.train_epochs),
            loss=strategy.loss.item(),
            images_per_second=self.images / elapsed,
        )
