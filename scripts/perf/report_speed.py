"""How long the report of 1,000 records takes, and which functions take the time.

    nox -s perf -- report [--methods 10] [--benchmarks 10] [--seeds 10] [--tasks 10] [--slowest 12]

The records are invented, with costs; they are read from disk and rendered into a temporary folder, once for
the time, and once with the profiler. The output lists the slowest functions of the project, by cumulative
time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.record import SCHEMA, Record, read_all, write
from reports.report import write_report

ROUNDS, CALLS = 10, 20
ROOMS = ("bench", "reports")


def invented(method: int, benchmark: int, seed: int, tasks: int) -> Record:
    """A valid record; better methods have lower numbers."""
    source = random.Random(f"{method} {benchmark} {seed}")
    counts = [1000] * tasks
    correct = [[_hits(i - j, method, source) if j <= i else None for j in range(tasks)] for i in range(tasks)]
    order = list(range(10 * tasks))
    random.Random(seed).shuffle(order)
    names = (f"method-{method}", f"benchmark-{benchmark}")
    return Record.model_validate(
        {
            "schema": SCHEMA,
            "status": "done",
            "method": names[0],
            "benchmark": names[1],
            "seed": seed,
            "tasks": tasks,
            "config": _config(*names, seed, tasks),
            "class_order": order,
            "correct": correct,
            "counts": counts,
            "cost": _cost(tasks, source),
            "manifest": _manifest(),
        }
    )


def _hits(age: int, method: int, source: random.Random) -> int:
    return int(900 - 20 * method - 15 * age + source.uniform(-20, 20))


def _config(method: str, benchmark: str, seed: int, tasks: int) -> dict[str, Any]:
    return {
        "method": {"name": method, "label": method, "options": {"rank": 4}},
        "benchmark": {"name": benchmark, "label": benchmark, "options": {}},
        "seed": seed,
        "scale": "full",
        "eval_on": "test",
        "tasks": tasks,
        "protocol": {"name": "common", "backbone": "micro_vit", "image_size": 32, "epochs": 3},
    }


def _manifest() -> dict[str, Any]:
    return {
        "versions": {"python": "3.12"},
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
    }


def _cost(tasks: int, source: random.Random) -> dict[str, Any]:
    latency = [_latency(learnt, batch, source) for batch in (1, 32) for learnt in (1, tasks)]
    return {
        "experiences": [
            {
                "train_seconds": source.uniform(5, 6),
                "train_images": 5000,
                "eval_seconds": 1.0,
                "flops": 10**9,
                "trainable": 10**5,
                "stored_bytes": 4 * 10**5,
            }
            for _ in range(tasks)
        ],
        "latency": latency,
        "conditions": {
            "device": "cpu: a processor",
            "precision": "fp32",
            "threads": 2,
            "image_size": 32,
            "merged": False,
            "beside": ["all"],
            "started": "2025-01-31T12:02:00+00:00",
        },
        "peak_memory": {"kind": "rss", "training": {"peak": 2 * 10**9, "baseline": 10**9}},
        "plain_flops": 10**9,
    }


def _latency(learnt: int, batch: int, source: random.Random) -> dict[str, Any]:
    plain = [0.002 * batch * source.uniform(0.95, 1.1) for _ in range(ROUNDS * CALLS)]
    model = [seconds * source.uniform(1.0, 1.2) for seconds in plain]
    return {
        "experiences": learnt,
        "batch": batch,
        "rounds": ROUNDS,
        "warmup": 10,
        "stable": True,
        "model": {"samples": model},
        "plain": {"samples": plain},
    }


def write_all(folder: Path, methods: int, benchmarks: int, seeds: int, tasks: int) -> int:
    """Write the records of a grid as a run does; returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [(m, b, s) for m in range(methods) for b in range(benchmarks) for s in range(seeds)]
    for m, b, s in cells:
        write(invented(m, b, s, tasks), folder / f"{m}-{b}-{s}")
    return len(cells)


def measure(results: Path, out: Path) -> tuple[float, float]:
    """Seconds for reading and for rendering."""
    start = time.perf_counter()
    records = read_all(results)
    between = time.perf_counter()
    write_report(records, out)
    return between - start, time.perf_counter() - between


def profiled(results: Path, out: Path) -> pstats.Stats:
    """The same with the profiler, which makes every call slower."""
    profiler = cProfile.Profile()
    profiler.runcall(measure, results, out)
    return pstats.Stats(profiler)


def slowest(profile: pstats.Stats, count: int) -> Iterator[str]:
    """Lines on the slowest functions of the project, by cumulative time."""
    functions = profile.get_stats_profile().func_profiles
    own = [(name, f) for name, f in functions.items() if Path(f.file_name).parent.name in ROOMS]
    for name, profiled in sorted(own, key=lambda item: -item[1].cumtime)[:count]:
        room = "/".join(Path(profiled.file_name).parts[-2:])
        yield f"{profiled.cumtime:7.2f} s  {room}: {name} ({profiled.ncalls} calls)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("methods", 10), ("benchmarks", 10), ("seeds", 10), ("tasks", 10), ("slowest", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results")
        records = write_all(results, args.methods, args.benchmarks, args.seeds, args.tasks)
        reading, rendering = measure(results, Path(folder, "report"))
        print(f"{records} records: read in {reading:.1f} s, rendered in {rendering:.1f} s", flush=True)
        print("again, with the profiler:", flush=True)
        print(*slowest(profiled(results, Path(folder, "again")), args.slowest), sep="\n")


if __name__ == "__main__":
    main()
