"""LoRA fine-tuning: what it may be asked for."""

from __future__ import annotations

import pytest

from methods.errors import UsageError
from methods.finetune import Finetune
from tests.conftest import tiny_vit


def test_a_rank_above_the_width_is_refused_before_memory_is_taken():
    with pytest.raises(UsageError, match=r"finetune.rank is 33; legal: at most .* 32"):
        Finetune(rank=33).attach(tiny_vit())


def test_targets_are_some_of_q_k_v_in_order():
    for targets in ("", "vk", "x", "qq"):
        with pytest.raises(UsageError, match=r"finetune.targets"):
            Finetune(targets=targets)
