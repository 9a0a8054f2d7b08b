"""One cell at a time: which settings suit, and what the one worker gets of the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.cell.inputs import Inputs
from bench.cell.manifest import RunContext
from bench.grid.executors import Parallelism
from bench.grid.executors.serial import SerialExecutor
from bench.grid.executors.worker_process import Resources
from bench.spec import Device, Settings, settings_from
from methods.errors import UsageError

pytestmark = pytest.mark.usefixtures("machine")

CONTEXT = RunContext("python -m bench run", "serial", 1, 1)


def settings(**values: Any) -> Settings:
    return settings_from({"methods": ["ncm"], "benchmarks": ["digits"], "executor": "serial", **values})


@pytest.mark.parametrize(
    ("values", "device", "threads", "text"),
    [
        ({}, "cpu", 8, "8 threads on cpu"),
        ({}, "cuda", 8, "8 threads on cuda"),
        ({"threads": 1}, "cpu", 1, "1 thread on cpu"),
        ({"workers": 1}, "cpu", 8, "8 threads on cpu"),
    ],
)
def test_one_worker_gets_all_gpus_and_all_threads_or_those_that_are_given(
    values: dict[str, Any], device: Device, threads: int, text: str, inputs: Inputs
) -> None:
    description = f"serial, on this machine: 1 at a time, each with {text}"
    assert SerialExecutor.parallelism(settings(**values), device, 27) == Parallelism(1, threads, description)
    context = replace(CONTEXT, threads=threads)
    with SerialExecutor.open(settings(**values), device, inputs.paths, context) as executor:
        assert executor.idle == [Resources(device, threads, gpu=None)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"workers": 2},
            "workers is 2, but the executor serial runs one cell at a time; legal: 1, or --executor proc",
        ),
        ({"ray_address": "auto"}, "ray_address is set, but the executor is serial; use --executor ray"),
    ],
)
def test_settings_of_other_executors_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SerialExecutor.check(settings(**values))


@pytest.mark.parametrize("workers", [None, 1])
def test_one_worker_is_accepted(workers: int | None) -> None:
    SerialExecutor.check(settings(workers=workers))
    assert SerialExecutor.parallelism(settings(workers=workers), "cpu", 27).workers == 1
