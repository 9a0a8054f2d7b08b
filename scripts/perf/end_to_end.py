"""Whole commands: each method with and without kept features, beside a bare torch loop with the same passes.

    nox -s perf -- end-to-end [--methods l2p,ncm] [--rounds 3] [--epochs 2] [--until record|end]
                   [--data-root DIR] [options of `run`, such as --benchmarks, --backbone, --precision]

Every run is a process of its own. A cell of a method is run without kept features, with none kept yet (cold),
with all of them kept (warm), and once more with all of them kept: what differs from the run before is noise.
Where a method uses no features of the frozen backbone, it is run twice. The bare loop makes as many passes
through the same architecture as the record of the cell counts, with and without a gradient. All runs of a
method are made once per round, in turns; ratios are formed within a round.

A command is timed until its record is on disk, and is ended then; with `--until end`, until it ends by
itself, after it has timed inference. A plain pass is a forward pass of one image without a gradient, timed in
the same round. The floor counts a backward pass without gradients of weights as one plain pass.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.benchmarks.base import DATA_VARIABLE
from bench.cell.backbone import MICRO_ARCHITECTURE, MICRO_NAME
from bench.cell.placement import images_per_pass
from bench.cell.runner import EVAL_BATCH
from bench.costs import Cost
from bench.options import split_list
from bench.probes.latency import round_order
from bench.record import RECORD_NAME, Record, read
from bench.spec import parse_choice
from methods.registry import METHODS
from reports.text import DASH, counted
from scripts.common import Rounds, ratios
from scripts.markdown import table
from scripts.perf.bare import Times, Work, build

NO_CACHE, COLD, WARM = "no cache", "cold", "warm"
BARE, BARE_KEPT, PLAIN = "bare loop", "bare loop, features kept", "plain passes"
NOISE = "again (noise)"
#: Runs of the harness, and the bare loop that makes the same passes; a cold one makes others before.
WITH_LOOP: Mapping[str, str | None] = {NO_CACHE: BARE, COLD: None, WARM: BARE_KEPT}
POLL = 0.02
#: Images whose plain passes are timed.
PLAIN_IMAGES = 1024


@dataclass(frozen=True)
class Measured:
    """Seconds of one process.

    Attributes:
        command: from its start to its record, or to its end.
        training: of all tasks, with the pass that computes features which are kept.
        evaluation: after all tasks.
    """

    command: float
    training: float
    evaluation: float


#: Runs `python -m bench run` with these words in a results folder, and returns the seconds it took.
Command = Callable[[Sequence[str], Path], float]
#: Waits for the process of a command with its results folder, and returns the time at which the clock stops.
Until = Callable[[subprocess.Popen[bytes], Path], float]
#: Makes the passes of a work in a process of its own, and returns what that took.
Loop = Callable[[Work], Measured]
#: By name of the run, one entry a round.
Runs = Mapping[str, Sequence[Measured]]


# ---- passes ---------------------------------------------------------------------------------------------


def forward_passes(method: Any, kept: bool) -> int:
    """Forward passes of an image that a method (its class) needs, in a step or in a prediction.

    One, and one more for the query of a method that adapts what it reads the frozen features for.
    """
    queries = method.asks_for != "none" and not method.frozen_backbone
    return 1 + queries - (kept and method.asks_for != "none")


def floor(method: Any, kept: bool) -> int:
    """Plain passes an image in training, at least."""
    return forward_passes(method, kept) + (not method.frozen_backbone)


def keeps_features(method: Any) -> bool:
    """Whether the method uses kept features."""
    return bool(method.asks_for != "none")


def work_of(record: Record, method: Any, kept: bool) -> Work:
    """The passes of a cell that was run with kept features, or those it needs without them."""
    cost, protocol = cost_of(record), protocol_of(record)
    passed = total(cost, "forward_images") + (0 if kept else total(cost, "cached_images"))
    stepped = min(passed, total(cost, "train_images"))
    work = Work(
        architecture=MICRO_ARCHITECTURE if protocol["backbone"] == MICRO_NAME else protocol["backbone"],
        image_size=protocol["image_size"],
        classes=len(record.class_order or ()),
        precision=protocol["precision"],
        device=str(record.config["device"]),
        threads=record.manifest.threads,
        batch=protocol["batch_size"],
        eval_batch=EVAL_BATCH,
        stepped=stepped,
        passed=passed - stepped,
        evaluated=evaluated_images(record) * forward_passes(method, kept),
        through="classifier" if method.frozen_backbone else "backbone",
    )
    return replace(work, eval_batch=images_per_pass(build(work), torch.device(work.device), EVAL_BATCH))


def plain_work(work: Work) -> Work:
    """Passes without a gradient only, in the batches of training and in those of evaluation."""
    return replace(work, stepped=0, passed=PLAIN_IMAGES, evaluated=PLAIN_IMAGES)


def cost_of(record: Record) -> Cost:
    assert record.cost is not None  # a cell that is done has it
    return record.cost


def protocol_of(record: Record) -> dict[str, Any]:
    protocol = record.config["protocol"]
    assert isinstance(protocol, dict)
    return protocol


def total(cost: Cost, field: str) -> int:
    """The sum of a count over all tasks."""
    return int(cost.total(field) or 0)


def trained_images(record: Record) -> int:
    """Images in training steps; of a method without steps, the images whose features it reads."""
    cost = cost_of(record)
    return total(cost, "train_images") or total(cost, "forward_images") + total(cost, "cached_images")


def evaluated_images(record: Record) -> int:
    """Test images of all evaluations."""
    counts = record.counts or []
    rows = record.correct or []
    return sum(n for row in rows for hits, n in zip(row, counts, strict=True) if hits is not None)


# ---- running --------------------------------------------------------------------------------------------


def measured(record: Record, seconds: float) -> Measured:
    """What a command took, with the seconds in its record."""
    cost = cost_of(record)
    training = (cost.total("train_seconds") or 0.0) + (cost.feature_seconds or 0.0)
    evaluation = sum(entry.eval_seconds or 0.0 for entry in cost.experiences)
    return Measured(seconds, training, evaluation)


def command(until: Until, search: str | None) -> Command:
    """Runs commands, each in a process of its own.

    Args:
        until: waits for the process.
        search: a folder where data and weights are searched for, or None.
    """
    environment = os.environ | ({DATA_VARIABLE: search} if search else {})

    def run(words: Sequence[str], results: Path) -> float:
        line = [sys.executable, "-m", "bench", "run", *words, "--results", str(results)]
        start = time.perf_counter()
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, env=environment) as process:
            return until(process, results) - start

    return run


def until_record(process: subprocess.Popen[bytes], results: Path) -> float:
    """Wait until a command has written its record, and end it; returns the time at which it was there.

    Raises:
        SystemExit: if it ends before.
    """
    while not list(results.glob(f"*/{RECORD_NAME}")):
        if process.poll() is not None:
            raise SystemExit(ended_early(process))
        time.sleep(POLL)
    recorded = time.perf_counter()
    process.terminate()
    return recorded


def until_end(process: subprocess.Popen[bytes], results: Path) -> float:
    """Wait until a command ends by itself; returns the time at which it did.

    Raises:
        SystemExit: if it fails.
    """
    if process.wait():
        raise SystemExit(ended_early(process))
    return time.perf_counter()


def ended_early(process: subprocess.Popen[bytes]) -> str:
    return f"the command ended with status {process.returncode}: {process.args!r}"


UNTIL: Mapping[str, Until] = {"record": until_record, "end": until_end}


def loop(work: Work) -> Measured:
    """Make the passes of a work in a process of its own."""
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "scripts.perf.bare", json.dumps(asdict(work))],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    times = Times(**json.loads(process.stdout))
    return Measured(seconds, times.training, times.evaluation)


def run_cell(command: Command, words: Sequence[str], root: Path) -> tuple[Record, Measured]:
    """Run a cell in a new results folder, with features kept below the data root.

    Raises:
        SystemExit: if it is not done.
    """
    with tempfile.TemporaryDirectory() as folder:
        seconds = command([*words, "--data-root", str(root)], Path(folder))
        record = read(next(Path(folder).glob(f"*/{RECORD_NAME}")))
    if not record.done:
        raise SystemExit(f"the cell is {record.status}: {record.reason}")
    return record, measured(record, seconds)


def measure(
    method: Any, words: Sequence[str], rounds: int, command: Command, loop: Loop
) -> tuple[Record, Runs]:
    """All runs of a method in each round; the record is that of a cell with kept features.

    Args:
        words: options of `run` that make a single cell.
    """
    with tempfile.TemporaryDirectory() as folder:
        warm, cold = Path(folder) / "warm", Path(folder) / "cold"
        record, _ = run_cell(command, words, warm)  # fills the folder
        functions = without_features(method, record, [*words, "--no-feature-cache"], command, loop)
        if keeps_features(method):
            functions |= with_features(method, record, words, command, loop, warm, cold)
        runs: dict[str, list[Measured]] = {name: [] for name in functions}
        for i in range(rounds):
            for name in round_order(list(functions), i):
                runs[name].append(functions[name]())
    return record, runs


def without_features(
    method: Any, record: Record, words: Sequence[str], command: Command, loop: Loop
) -> dict[str, Callable[[], Measured]]:
    """The runs in which no features are kept."""
    work = work_of(record, method, kept=False)

    def run() -> Measured:
        with tempfile.TemporaryDirectory() as root:
            return run_cell(command, words, Path(root))[1]

    return {
        NO_CACHE: run,
        NOISE: run,
        BARE: lambda: loop(work),
        PLAIN: lambda: loop(plain_work(work)),
    }


def with_features(
    method: Any, record: Record, words: Sequence[str], command: Command, loop: Loop, warm: Path, cold: Path
) -> dict[str, Callable[[], Measured]]:
    """The runs in which features are kept, below the data roots `warm` and `cold`."""
    work = work_of(record, method, kept=True)

    def from_nothing() -> Measured:
        shutil.rmtree(cold, ignore_errors=True)
        return run_cell(command, words, cold)[1]

    runs = {COLD: from_nothing} | dict.fromkeys((WARM, NOISE), lambda: run_cell(command, words, warm)[1])
    return runs | ({BARE_KEPT: lambda: loop(work)} if work.passes else {})


# ---- tables ---------------------------------------------------------------------------------------------

TIMES = ("method", "run", "command (s)", "/ no cache", "/ bare loop", "training (s)", "/ no cache")
LOOPS = ("training + evaluation / bare loop",)
PASSES = ("method", "run", "forward passes, counted", "floor", "plain passes in training", "in evaluation")


def times_rows(label: str, runs: Runs) -> Iterator[list[str]]:
    """A row for each run; that of the noise is compared with the run that it repeats."""
    last = WARM if WARM in runs else NO_CACHE
    for name in WITH_LOOP:
        if name in runs:
            yield [label, name, *times_cells(runs, name, NO_CACHE, WITH_LOOP[name])]
    yield [label, f"{last}, {NOISE}: / {last}", *times_cells(runs, NOISE, last, last)]


def times_cells(runs: Runs, name: str, reference: str, bare: str | None) -> list[str]:
    """Seconds of a run, and its ratios to a reference and to a bare loop."""
    return [
        median(commands(runs)[name]),
        relative(commands(runs), name, reference),
        relative(commands(runs), name, bare),
        median(trainings(runs)[name]),
        relative(trainings(runs), name, reference),
        relative(loops(runs), name, bare),
    ]


def passes_rows(label: str, method: Any, record: Record, runs: Runs) -> Iterator[list[str]]:
    """How many passes an image costs, for each run."""
    for name in WITH_LOOP:
        if name in runs:
            kept = name != NO_CACHE
            yield [
                label,
                name,
                f"{passes_counted(record, kept):.2f}",
                f"{floor(method, kept)}",
                spread(plain_passes(trainings(runs), name, trained_images(record))),
                spread(plain_passes(evaluations(runs), name, evaluated_images(record))),
            ]


def passes_counted(record: Record, kept: bool) -> float:
    """Forward passes an image in training, by the counts of the record."""
    cost = cost_of(record)
    passes = total(cost, "forward_images") + (0 if kept else total(cost, "cached_images"))
    return passes / trained_images(record)


def plain_passes(times: Rounds, name: str, images: int) -> list[float]:
    """Seconds an image, as multiples of a plain pass in the same round."""
    return [seconds * PLAIN_IMAGES / images for seconds in ratios(times, PLAIN)[name]]


def commands(runs: Runs) -> Rounds:
    return {name: [run.command for run in column] for name, column in runs.items()}


def trainings(runs: Runs) -> Rounds:
    return {name: [run.training for run in column] for name, column in runs.items()}


def evaluations(runs: Runs) -> Rounds:
    return {name: [run.evaluation for run in column] for name, column in runs.items()}


def loops(runs: Runs) -> Rounds:
    return {name: [run.training + run.evaluation for run in column] for name, column in runs.items()}


def relative(times: Rounds, name: str, reference: str | None) -> str:
    """The ratio of two runs in each round; a dash where there is no reference."""
    return spread(ratios(times, reference)[name]) if reference is not None and reference in times else DASH


def median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}"


def spread(values: Sequence[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# ---- the command ----------------------------------------------------------------------------------------


def report(
    methods: Sequence[str], options: Sequence[str], rounds: int, command: Command, loop: Loop
) -> Iterator[str]:
    """The times of each method as soon as it is measured, and the tables at the end."""
    times, passes, last = [], [], None
    for label in methods:
        method = METHODS[parse_choice(label).name].load()
        last, runs = measure(method, [*options, "--methods", label, "--seeds", "0"], rounds, command, loop)
        times += list(times_rows(label, runs))
        passes += list(passes_rows(label, method, last, runs))
        yield "\n".join(" | ".join(row) for row in times if row[0] == label)
    if last is not None:
        yield setting(last, rounds)
        yield table(TIMES + LOOPS, times, heads=2)
        yield table(PASSES, passes, heads=2)


def setting(record: Record, rounds: int) -> str:
    """What was run, in a line."""
    protocol = protocol_of(record)
    return (
        f"{record.benchmark}, {record.tasks} tasks, {trained_images(record)} images in training, "
        f"{evaluated_images(record)} in evaluation; {protocol['backbone']}, {protocol['image_size']} px, "
        f"{protocol['precision']}, batches of {protocol['batch_size']}, "
        f"{counted(record.manifest.threads, 'thread')} on {record.manifest.device}, "
        f"commit {(record.manifest.commit or DASH)[:7]}; medians (ranges) of {rounds} rounds"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="passes over the images of a task")
    parser.add_argument("--until", choices=list(UNTIL), default="record", help="when the clock stops")
    parser.add_argument("--data-root", help="folder that is searched for data and weights")
    options, words = parser.parse_known_args(arguments)
    words += ["--set", f"protocol.epochs={options.epochs}"]
    runs = command(UNTIL[options.until], options.data_root)
    for part in report(split_list(options.methods), words, options.rounds, runs, loop):
        print(part, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
