"""Speed-up of training a grid with each executor of this machine.

    nox -s perf -- speedup [--rounds 2] [--grid "--methods finetune,joint --scale quick --seeds 0"]

The same grid is run with different options, in turns, as a user runs it, each time in a new folder. The time
is that from the start of the command to the record of the last cell; the timing of inference, which is the
same for all, is not waited for. Ratios are formed within a round.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.probes.latency import round_order
from bench.record import RECORD_NAME, read
from scripts.common import Rounds, ratios
from scripts.markdown import table

GRID = "--methods finetune,inflora,dualprompt,coda-prompt --scale quick --seeds 0 --set protocol.epochs=2"
REFERENCE = "serial"
POLL = 0.1

#: Options of `run`, by name.
VARIANTS = {
    REFERENCE: "--executor serial",
    "serial, one thread": "--executor serial --threads 1",
    "processes": "--executor processes",
    "ray": "--executor ray",
}


def seconds_until_trained(grid: str, variant: str, cells: int) -> float:
    """Start the command, wait for so many records, end it."""
    with tempfile.TemporaryDirectory() as folder:
        words = shlex.split(f"{grid} {variant} --results {folder}")
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", "run", *words],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )
        while len(records := list(Path(folder).glob(f"*/{RECORD_NAME}"))) < cells:
            if process.poll() is not None:
                raise RuntimeError(f"the command ended with status {process.returncode}: run {words}")
            time.sleep(POLL)
        if not all(read(path).done for path in records):
            raise RuntimeError(f"not all cells are done: run {words}")
        elapsed = time.perf_counter() - start
        process.send_signal(signal.SIGTERM)
        process.wait()
    return elapsed


def count_cells(grid: str) -> int:
    """Number of cells of the grid."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*shlex.split(grid), "--results", folder, "--dry-run"]
        planned = subprocess.run(
            [sys.executable, "-m", "bench", "run", *words], capture_output=True, text=True, check=True
        )
    return cells_in(planned.stdout)


def cells_in(plan: str) -> int:
    """Number of cells in the output of a dry run."""
    last = plan.strip().splitlines()[-1]
    return int(last.removeprefix("cells: ").partition(";")[0])


def measure(
    grid: str, cells: int, rounds: int, run: Callable[[str, str, int], float] = seconds_until_trained
) -> Rounds:
    """Seconds of each variant in each round.

    Args:
        run: runs the grid with the options of a variant, as `seconds_until_trained` does.
    """
    times: Rounds = {name: [] for name in VARIANTS}
    for i in range(rounds):
        for name in round_order(list(VARIANTS), i):
            times[name].append(run(grid, VARIANTS[name], cells))
    return times


def report(grid: str, cells: int, times: Rounds) -> str:
    """The table of times and speed-ups."""
    shares = ratios(times, REFERENCE)
    speedups = {name: [1 / share for share in column] for name, column in shares.items()}
    rows = [
        [
            name,
            f"{statistics.median(column):.0f}",
            ", ".join(f"{speedup:.2f}" for speedup in speedups[name]),
            f"{statistics.median(speedups[name]):.2f}",
        ]
        for name, column in times.items()
    ]
    header = ["options", "seconds, median", "times as fast as serial, each round", "median"]
    return f"{cells} cells: `{grid}`\n\n" + table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often the grid is run with each option")
    parser.add_argument("--grid", default=GRID, help="options of `run`, in quotes")
    options = parser.parse_args()
    cells = count_cells(options.grid)
    print(report(options.grid, cells, measure(options.grid, cells, options.rounds)))


if __name__ == "__main__":
    main()
