"""How cells are spread: who gets which share of a machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.grid.executors import spread
from bench.grid.executors.processes import resources_of
from bench.grid.executors.spread import Spread, spread_of, visible_gpus
from bench.grid.executors.worker_process import Resources
from bench.grid.plan import device_of
from bench.spec import settings_from
from methods.errors import UsageError


def settings(**values: Any) -> Any:
    return settings_from({"methods": ["ncm"], "benchmarks": ["digits"], **values})


@pytest.fixture(autouse=True)
def _a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With eight cores and three GPUs."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(spread, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


EXPECTED = {
    "serial": ({}, "cpu", (1, 8, ())),
    "serial on a GPU": ({}, "cuda", (1, 8, ())),
    "serial on one thread": ({"threads": 1}, "cpu", (1, 1, ())),
    "a core each": ({"executor": "processes"}, "cpu", (8, 1, ())),
    "their share of the threads": ({"executor": "processes", "workers": 3}, "cpu", (3, 2, ())),
    "more workers than cores": ({"executor": "processes", "workers": 9}, "cpu", (9, 1, ())),
    "a GPU each": ({"executor": "processes"}, "cuda", (3, 2, ("0", "1", "2"))),
    "two on a GPU": ({"executor": "processes", "workers": 6}, "cuda", (6, 1, ("0", "1", "2"))),
    "as the cluster has room": ({"executor": "ray"}, "cpu", (None, 1, ())),
    "as one likes": ({"executor": "ray", "workers": 4, "threads": 2}, "cuda", (4, 2, ())),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_workers_threads_and_gpus(case: str) -> None:
    values, device, expected = EXPECTED[case]
    found = spread_of(settings(**values), device)  # type: ignore[arg-type]
    assert (found.workers, found.threads, found.gpus) == expected


def test_gpus_are_those_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-ab12")
    assert visible_gpus() == ("5", "GPU-ab12")


def test_workers_take_the_gpus_in_turn() -> None:
    assert resources_of("cuda", 3, 2, ("5", "7")) == [Resources("cuda", 2, gpu) for gpu in ("5", "7", "5")]
    assert resources_of("cpu", 2, 4, ()) == [Resources("cpu", 4)] * 2
    assert resources_of("cuda", 1, 4, ()) == [Resources("cuda", 4)]


def test_a_cluster_may_have_gpus_where_this_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(settings(device="cuda", executor="ray")) == "cuda"
    assert device_of(settings(device="auto", executor="ray")) == "cpu"
    with pytest.raises(UsageError, match="sees no CUDA device"):
        device_of(settings(device="cuda", executor="processes"))


WORDS = {
    "serial, on this machine: 1 at a time, each with 8 threads on cpu": Spread("serial", "cpu", 1, 8),
    "processes, on this machine: 2 at a time, each with 1 thread on cuda, GPUs 0, 1 in turn": Spread(
        "processes", "cuda", 2, 1, ("0", "1")
    ),
    "ray, on the Ray cluster at head:6379: as many cells at a time as there is room for, "
    "each with 4 threads and a GPU on cuda": Spread("ray", "cuda", None, 4, address="head:6379"),
    "ray, on a Ray started on this machine: 2 at a time, each with 1 thread on cpu": Spread(
        "ray", "cpu", 2, 1
    ),
}


@pytest.mark.parametrize("words", WORDS)
def test_a_person_is_told_what_runs_where(words: str) -> None:
    assert WORDS[words].in_words() == words
