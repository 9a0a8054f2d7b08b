"""Against a method whose own work takes a known time."""

from __future__ import annotations

import time
from typing import Any

from bench.probes.training import PhaseTimer, phases_of
from methods.finetune import Finetune
from methods.ncm import Ncm
from tests.conftest import deep_vit
from tests.methods.conftest import learner, stream


class Slow(Finetune):
    """Sleeps before its epochs and, longer, after them."""

    def begin(self, strategy: Any) -> None:
        time.sleep(0.05)

    def end(self, strategy: Any) -> None:
        time.sleep(0.5)


def phases_after(method: Any, experiences: int) -> Any:
    method.name = "probe"
    strategy = learner(deep_vit(), method, [PhaseTimer()], epochs=2)
    strategy.plugins.insert(0, PhaseTimer())
    for experience in stream().train_stream[:experiences]:
        strategy.train(experience)
    return phases_of(strategy)


def test_the_methods_own_work_is_timed_by_phase() -> None:
    phases = phases_after(Slow(), experiences=2)
    assert 0.05 <= phases.prepare < 0.5 <= phases.consolidate


def test_images_are_those_of_all_steps_of_the_last_experience() -> None:
    assert phases_after(Slow(), experiences=2).images == 2 * 48  # two epochs of 24 images of two classes


def test_a_method_that_makes_no_step_trains_on_no_image() -> None:
    phases = phases_after(Ncm(), experiences=1)
    assert phases.images == 0
    assert phases.prepare > phases.consolidate
