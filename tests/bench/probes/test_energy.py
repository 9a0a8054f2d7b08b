"""Against a fake of NVIDIA's library: no GPU is needed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.probes.energy import counter_of


class NVMLError(Exception):
    pass


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU that has drawn 5,000 mJ, and draws 2,500 mJ more between two readings."""
    drawn = iter(range(5_000, 100_000, 2_500))
    fake = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-abc": 1}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(drawn),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    return fake


def fails(*_: Any) -> Any:
    raise NVMLError("not supported")


def test_the_gpus_millijoules_are_joules_here(library: SimpleNamespace) -> None:
    drawn = counter_of(torch.device("cuda"))
    assert drawn is not None
    before = drawn()
    assert drawn() - before == 2.5


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_gpu_without_a_counter_has_none(library: SimpleNamespace, call: str) -> None:
    setattr(library, call, fails)
    assert counter_of(torch.device("cuda")) is None


def test_a_cpu_has_none() -> None:
    assert counter_of(torch.device("cpu")) is None
