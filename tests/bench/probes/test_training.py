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


def learnt(method: Any, experiences: int) -> Any:
    method.name = "probe"
    strategy = learner(deep_vit(), method, [PhaseTimer()], epochs=2)
    strategy.plugins.insert(0, PhaseTimer())
    for experience in stream().train_stream[:experiences]:
        strategy.train(experience)
    return phases_of(strategy)


def test_the_methods_own_work_is_told_apart_by_phase() -> None:
    found = learnt(Slow(), experiences=2)
    assert 0.05 <= found.prepare < 0.5 <= found.consolidate


def test_images_are_those_of_all_steps_of_the_last_experience() -> None:
    assert learnt(Slow(), experiences=2).images == 2 * 48  # two epochs of 24 images of each of two classes


def test_a_method_that_makes_no_step_trains_on_no_image() -> None:
    found = learnt(Ncm(), experiences=1)
    assert found.images == 0
    assert found.prepare > found.consolidate
