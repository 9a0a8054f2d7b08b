"""The strategy: schedules, precision, and a loss that must stay finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.cell.batches import Pipeline, clean
from bench.cell.strategy import (
    SCHEDULES,
    DivergedError,
    FiniteLogits,
    FiniteLoss,
    PredictionCollector,
    ProgressReporter,
    Schedule,
    Strategy,
    coda_cosine,
    cosine,
)
from bench.cell.stream import experiences, one_experience
from bench.probes.training import PhaseTimer
from methods.finetune import Finetune
from methods.strategy import Plugin, true_experience
from tests.bench.conftest import arrays
from tests.conftest import tiny_vit


def in_pairs(per_class: int):
    """Images and labels, and the experience of each: two classes in each of three."""
    x, y = arrays(per_class)
    return x, y, y // 2


def make(
    precision: str = "fp32",
    *plugins,
    epochs: int = 2,
    model=None,
    method=None,
    batch: int = 8,
    drop_last: bool = False,
) -> Strategy:
    model = model or tiny_vit()
    method = method or Finetune()
    collate = clean(Pipeline(16, 1.0, (0.5,) * 3, (0.5,) * 3, torch.device("cpu")))
    return Strategy(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_collate=collate,
        eval_collate=collate,
        statistics_collate=collate,
        order=torch.Generator().manual_seed(0),
        precision=precision,
        drop_last=drop_last,
        train_mb_size=batch,
        train_epochs=epochs,
        eval_mb_size=64,
        device=torch.device("cpu"),
        plugins=[method, *plugins],
    )


def test_cosine_starts_full_and_ends_at_zero():
    assert cosine(0, 10, 2) == 1.0
    assert cosine(10, 10, 2) == pytest.approx(0.5)
    assert cosine(20, 10, 2) == pytest.approx(0.0)


def test_codas_schedule_with_its_off_by_one():
    """Specification 0.7: with 20 epochs the factors are 1, 1, 0.9967, 0.9866, ..., 0.0974."""
    factors = [coda_cosine(epoch * 5 + 3, 5, 20) for epoch in range(20)]
    assert factors[:4] == pytest.approx([1.0, 1.0, 0.9967, 0.9866], abs=1e-4)
    assert factors[-1] == pytest.approx(0.0974, abs=1e-4)
    assert coda_cosine(49 * 7, 7, 50) == pytest.approx(0.0474, abs=1e-4)
    assert coda_cosine(3, 5, 1) == 1.0


class Rates(Plugin):
    """Records the learning rate of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def before_update(self, strategy, *args, **kwargs):
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])


def test_every_experience_starts_again_at_the_methods_own_rate():
    recorder = Rates()
    train_x, train_y = arrays(per_class=8)
    strategy = make("fp32", Schedule(SCHEDULES["cosine"]), recorder)
    for experience in experiences(train_x, train_y, train_y // 2):
        strategy.train(experience)
    steps = 2 * math.ceil(16 / 8)
    expected = [5e-3 * cosine(step, steps // 2, 2) for step in range(steps)]
    assert recorder.rates == pytest.approx(expected * 3)


@pytest.mark.parametrize(("batch", "drop_last", "steps"), [(6, False, 3), (6, True, 2), (8, True, 2)])
def test_a_dropped_batch_is_no_step_of_schedule_progress_or_cost(batch, drop_last, steps):
    """Two epochs of 16 images."""
    rates, timer, shares = Rates(), PhaseTimer(), []
    reporter = ProgressReporter(lambda update: shares.append(update.share), 1, every=0.0)
    plugins = (Schedule(SCHEDULES["cosine"]), rates, timer, reporter)
    strategy = make("fp32", *plugins, batch=batch, drop_last=drop_last)
    strategy.train(experiences(*in_pairs(per_class=8))[0])
    assert rates.rates == pytest.approx([5e-3 * cosine(step, steps, 2) for step in range(2 * steps)])
    assert timer.images == 2 * (min(steps * batch, 16))
    assert shares[1:] == pytest.approx([(step + 1) / (2 * steps) for step in range(2 * steps)])


def test_a_task_smaller_than_a_batch_is_trained_on_as_one():
    rates, timer = Rates(), PhaseTimer()
    strategy = make("fp32", rates, timer, batch=17, drop_last=True)
    strategy.train(experiences(*in_pairs(per_class=8))[0])
    assert (len(rates.rates), timer.images) == (2, 32)


@pytest.mark.parametrize("every", [0.0, 3600.0], ids=["at each step", "at the end of the epoch"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_step_whose_loss_is_not_finite_is_named(bad, every):
    """However many steps were made before the losses were read."""
    factors = iter([1.0] * 4 + [1.0, bad, 1.0, bad])
    strategy = make("fp32", FiniteLoss(every), batch=4)
    strategy._criterion = lambda logits, _: logits[torch.isfinite(logits)].sum() * 0 + next(factors)
    with pytest.raises(DivergedError, match=f"became {bad} in task 1, epoch 2, step 2;"):
        strategy.train(experiences(*in_pairs(per_class=8))[0])


class Counted(torch.Tensor):
    """A tensor that counts how often its value is read into the program."""

    reads = 0

    def item(self):
        Counted.reads += 1
        return super().item()

    def tolist(self):
        Counted.reads += 1
        return super().tolist()


def test_losses_are_read_off_the_device_once_an_epoch_and_not_at_every_step():
    Counted.reads = 0
    strategy = make("fp32", FiniteLoss(3600.0), batch=4)
    criterion = strategy._criterion
    strategy._criterion = lambda *arguments: criterion(*arguments).as_subclass(Counted)
    strategy.train(experiences(*in_pairs(per_class=8))[0])
    assert Counted.reads == 2  # epochs


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_end_the_evaluation_and_say_of_which_class(bad):
    strategy = make("fp32", FiniteLogits(list("abcdef")))
    x, y = arrays(per_class=5)
    for experience in experiences(x, y, y // 2)[:2]:
        strategy.train(experience)
    forward = strategy.forward
    strategy.forward = lambda: forward().masked_fill(strategy.mb_y[:, None] >= 2, bad)
    with pytest.raises(DivergedError, match=f"became {bad} in the evaluation after task 2, .* class c;"):
        strategy.eval([one_experience(x, y, np.flatnonzero(y < 4))])


def test_logits_of_classes_that_are_ruled_out_may_be_minus_infinity():
    strategy = make("fp32", FiniteLogits(list("abcdef")), PredictionCollector())
    x, y = arrays(per_class=5)
    strategy.train(experiences(x, y, y // 2)[0])
    forward = strategy.forward
    strategy.forward = lambda: forward().index_fill(1, torch.tensor([1]), -math.inf)
    strategy.eval([one_experience(x, y, np.flatnonzero(y < 2))])
    assert set(strategy.predictions()[0].tolist()) == {0}


def test_the_true_experience_is_that_of_the_images_rows():
    strategy = make("fp32")
    x, y = arrays(per_class=5)
    strategy.train(experiences(x, y, np.arange(len(y)) % 3)[0])
    strategy.test_experience, seen = torch.arange(len(y)) % 3 - 1, []

    class Ask(Plugin):
        def after_eval_iteration(self, strategy, **kwargs):
            seen.append(true_experience(strategy))

    strategy.plugins.append(Ask())
    strategy.eval([one_experience(x, y, [7, 3, 1])])
    assert torch.cat(seen).tolist() == [0, -1, 0]


def test_bf16_is_used_for_the_pass_and_logits_are_in_fp32():
    dtypes = []

    class Peek(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x):
            dtypes.append(self.inner(x).dtype)
            return self.inner(x)

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        strategy = make(precision)
        strategy.model, strategy.mbatch = Peek(), [torch.randn(3, 4), torch.zeros(3)]
        assert strategy.forward().dtype == torch.float32
        assert dtypes[-1] == dtype


def test_weights_stay_in_fp32_under_bf16():
    strategy = make("bf16")
    train_x, train_y = arrays(per_class=4)
    strategy.train(experiences(train_x, train_y, train_y // 2)[0])
    assert {p.dtype for p in strategy.model.parameters()} == {torch.float32}


def test_one_evaluation_pass_predicts_all_images_of_the_seen_classes():
    strategy = make("fp32", PredictionCollector())
    x, y = arrays(per_class=5)
    for experience in experiences(x, y, y // 2)[:2]:
        strategy.train(experience)
    strategy.eval([one_experience(x, y, np.flatnonzero(y < 4))])
    predicted, true = strategy.predictions()
    assert len(predicted) == 4 * 5
    assert set(true.tolist()) == {0, 1, 2, 3}
    assert set(predicted.tolist()) <= {0, 1, 2, 3}
    strategy.eval([one_experience(x, y, np.flatnonzero(y < 2))])
    assert len(strategy.predictions()[0]) == 2 * 5


def test_progress_is_reported_in_order():
    updates = []
    strategy = make("fp32", ProgressReporter(updates.append, experiences=3, every=0.0))
    x, y = arrays(per_class=8)
    strategy.train(experiences(x, y, y // 2)[0])
    assert updates[0].epoch == 0
    steps = updates[1:]
    assert [update.epoch for update in steps] == [1, 1, 2, 2]
    assert [update.share for update in steps] == [0.25, 0.5, 0.75, 1.0]
    assert all(update.loss > 0 and update.images_per_second > 0 for update in steps)
