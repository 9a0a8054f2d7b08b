from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from bench.record import SCHEMA, Record

Make = Callable[..., Record]
Correct = list[list[int | None]]

PROTOCOL = {
    "name": "common",
    "backbone": "micro_vit",
    "image_size": 32,
    "epochs": 3,
    "batch_size": 32,
    "normalisation": "backbone",
    "augmentation": "none",
    "precision": "fp32",
}

MANIFEST: dict[str, Any] = {
    "versions": {"python": "3.12.1", "torch": "2.9.0"},
    "device": "cpu: a processor",
    "threads": 2,
    "precision": "fp32",
    "backbone": "micro_vit",
    "backbone_sha256": "ab" * 32,
    "data_sha256": "cd" * 32,
    "split_sha256": "ef" * 32,
    "commit": "1234567",
    "dirty": False,
    "started": "2025-01-31T12:00:00+00:00",
    "ended": "2025-01-31T12:01:00+00:00",
    "command": "python -m bench run",
}


def simulated(seed: str, tasks: int, counts: list[int], skill: float, loss: float) -> Correct:
    """Plausible counts: a task is learnt at about `skill` and loses about `loss` with each later one."""
    source = random.Random(seed)
    return [
        [
            round(counts[j] * min(1.0, max(0.0, skill - loss * (i - j) + source.uniform(-0.03, 0.03))))
            if j <= i
            else None
            for j in range(tasks)
        ]
        for i in range(tasks)
    ]


def last_row_only(correct: Correct) -> Correct:
    return [[None] * len(correct) for _ in correct[:-1]] + [correct[-1]]


def latency(experiences: int, batch: int, ratio: float, source: random.Random) -> dict[str, Any]:
    """Four rounds of five calls; the model takes about `ratio` times as long as the plain ViT."""
    plain = [0.002 * batch * source.uniform(0.95, 1.1) for _ in range(20)]
    model = [ratio * seconds * source.uniform(0.98, 1.02) for seconds in plain]
    return {
        "experiences": experiences,
        "batch": batch,
        "rounds": 4,
        "warmup": 10,
        "stable": True,
        "model": {"samples": model},
        "plain": {"samples": plain},
    }


def measured(method: str, seed: int, tasks: int, ratio: float, growth: float = 0.0) -> dict[str, Any]:
    """Plausible costs, all of them measured: inference takes `ratio` times as long as the plain ViT's after
    the first task, and `growth` more for each further one."""
    source = random.Random(f"{method} {seed}")
    stages = sorted({1, tasks})
    last = ratio + growth * (tasks - 1)
    timings = [latency(t, b, ratio + growth * (t - 1), source) for b in (1, 32) for t in stages]
    return {
        "experiences": [_experience(t, 5.0 + source.uniform(0, 1), ratio + growth * t) for t in range(tasks)],
        "latency": timings,
        "conditions": {
            "device": MANIFEST["device"],
            "precision": "fp32",
            "threads": 2,
            "image_size": 32,
            "merged": method == "finetune",
            "beside": [method, "another"],
            "started": "2025-01-31T12:02:00+00:00",
        },
        "peak_memory": {
            "kind": "rss",
            "training": {"peak": int(900e6 + 1e6 * source.uniform(0, 9)), "baseline": 400_000_000},
            "inference": {"peak": int(500e6 * last / 2 + 4e8), "baseline": 400_000_000},
            "inference_batch": 32,
        },
        "plain_flops": 100_000_000,
    }


def _experience(t: int, train_seconds: float, ratio: float) -> dict[str, Any]:
    """The cost of task t, counted from 0."""
    return {
        "train_seconds": train_seconds,
        "prepare_seconds": 0.5,
        "consolidate_seconds": 0.25,
        "train_images": 300,
        "eval_seconds": 1.0 + 0.5 * t,
        "flops": round(1e8 * ratio),
        "trainable": 10_000 + 10 * t,
        "stored": 20_000 * (t + 1),
        "deployed": 10**6 + 20_000 * t,
        "stored_bytes": 80_000 * (t + 1),
        "deployed_bytes": 4 * 10**6 + 80_000 * t,
    }


def with_costs(cost: dict[str, Any], **values: list[Any]) -> dict[str, Any]:
    """The cost with other values of some fields of its experiences, an entry per experience."""
    changes = [dict(zip(values, entry, strict=True)) for entry in zip(*values.values(), strict=True)]
    pairs = zip(cost["experiences"], changes, strict=True)
    return cost | {"experiences": [experience | change for experience, change in pairs]}


def _config(method: str, benchmark: str, seed: int, tasks: int, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": {"name": method.partition(":")[0], "label": method, "options": {"rank": 4}},
        "benchmark": {"name": benchmark.partition(":")[0], "label": benchmark, "options": {}},
        "seed": seed,
        "scale": "full",
        "eval_on": "test",
        "device": "cpu",
        "tasks": tasks,
        "task_sizes": [2] * tasks,
        "protocol": deepcopy(PROTOCOL),
    } | changes


@pytest.fixture(scope="session")
def make() -> Make:
    """A factory of valid records; `config` and `manifest` are changes to the defaults."""

    def record(
        method: str = "finetune",
        seed: int = 0,
        benchmark: str = "digits",
        *,
        tasks: int = 3,
        skill: float = 0.9,
        loss: float = 0.1,
        correct: Correct | None = None,
        counts: list[int] | None = None,
        joint: bool = False,
        config: dict[str, Any] | None = None,
        manifest: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Record:
        counts = counts or [100 + 20 * j for j in range(tasks)]
        correct = correct or simulated(f"{method} {seed}", tasks, counts, skill, loss)
        correct = last_row_only(correct) if joint else correct
        order = list(range(2 * tasks))
        random.Random(seed).shuffle(order)
        return Record.model_validate(
            {
                "schema": SCHEMA,
                "status": "done",
                "method": method,
                "benchmark": benchmark,
                "seed": seed,
                "tasks": tasks,
                "config": _config(method, benchmark, seed, tasks, config or {}),
                "class_order": order,
                "correct": correct,
                "counts": counts,
                "cost": {
                    "experiences": [
                        {
                            "train_seconds": 1.25 + seed,
                            "trainable": 10 + j,
                            "stored": 1000 * (j + 1),
                            "deployed": 10**6,
                        }
                        for j in range(tasks)
                    ]
                },
                "manifest": MANIFEST | (manifest or {}),
            }
            | fields
        )

    return record


@pytest.fixture(scope="session")
def unfinished(make: Make) -> Make:
    """A factory of records of cells that did not finish."""

    def record(method: str, seed: int, status: str, reason: str, **fields: Any) -> Record:
        results = ("class_order", "class_names", "correct", "counts", "predictions", "diagnostics", "cost")
        whole = make(method, seed, **fields).model_dump(by_alias=True)
        return Record.model_validate(whole | dict.fromkeys(results) | {"status": status, "reason": reason})

    return record


@pytest.fixture(scope="session")
def records(make: Make, unfinished: Make) -> list[Record]:
    """What a real folder holds: seeds, a failure, a skip, one seed, a joint reference, two benchmarks."""
    warned = {"warnings": ["contaminated: micro_vit was pre-trained on these images"]}
    skipped = {"manifest": {"backbone_sha256": None, "data_sha256": None, "split_sha256": None}}
    return [
        *(make("finetune", seed, skill=0.95, loss=0.2) for seed in range(3)),
        *(make("duallora:gate=none", seed, skill=0.9, loss=0.03) for seed in range(3)),
        *(make("joint", seed, skill=0.96, loss=0.0, joint=True) for seed in range(3)),
        make("l2p", 0, skill=0.85, loss=0.05),
        unfinished("l2p", 1, "oom", "The device ran out of memory."),
        unfinished("ncm", 0, "failed", "ValueError: bad | pipe"),
        unfinished("coda-prompt", 0, "skipped", "No weights here.", **skipped),
        *(make("finetune", seed, "cifar100", skill=0.8, manifest=warned) for seed in range(2)),
        *(make("l2p", seed, "cifar100", skill=0.8, loss=0.02, manifest=warned) for seed in range(2)),
    ]


@pytest.fixture(scope="session")
def eventful(make: Make, unfinished: Make) -> list[Record]:
    """What can happen, at once: two methods that are close, one failed cell, one skipped, one seed only, a
    reference, a contaminated benchmark on which a method is missing, costs of most methods, a restless one.
    """
    skipped = {"manifest": {"backbone_sha256": None, "data_sha256": None, "split_sha256": None}}
    warned = {"warnings": ["contaminated: micro_vit was pre-trained on the training images of cifar100"]}

    def costly(method: str, seed: int, skill: float, loss: float, ratio: float, **fields: Any) -> Record:
        growth = 0.2 if method == "l2p" else 0.0
        cost = measured(method, seed, 3, ratio, growth)
        return make(method, seed, skill=skill, loss=loss, cost=cost, **fields)

    restless = measured("inflora", 2, 3, 1.06)
    restless["latency"][0]["stable"] = False
    return [
        *(costly("joint", seed, 0.96, 0.0, 1.0, joint=True) for seed in range(3)),
        *(costly("duallora:gate=none", seed, 0.9, 0.03, 1.12) for seed in range(3)),
        *(costly("inflora", seed, 0.89, 0.03, 1.06) for seed in range(2)),
        make("inflora", 2, skill=0.89, loss=0.03, cost=restless),
        *(costly("finetune", seed, 0.95, 0.2, 1.0) for seed in range(3)),
        costly("l2p", 0, 0.85, 0.05, 2.1),
        *(make("ncm", seed, skill=0.7, loss=0.02, cost=None) for seed in range(2)),
        unfinished("ncm", 2, "failed", "ValueError: bad | pipe"),
        unfinished("coda-prompt", 0, "skipped", "No weights here.", **skipped),
        *(
            costly("finetune", seed, 0.8, 0.2, 1.0, benchmark="cifar100", manifest=warned)
            for seed in range(2)
        ),
        *(
            costly("inflora", seed, 0.8, 0.02, 1.06, benchmark="cifar100", manifest=warned)
            for seed in range(2)
        ),
        make("l2p", 0, "cifar100", skill=0.78, loss=0.05, manifest=warned),
    ]
