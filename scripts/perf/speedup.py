"""How much sooner a grid is trained when its cells are spread over this machine.

    nox -s perf -- spread [--rounds 2] [--grid "--methods finetune,joint --scale quick --seeds 0"]

Each way of running the same grid is started as a user starts it, in turns, with a folder of its own. Its time
runs from the start of the command to the record of the last cell; the timing of inference, which is the same
for all, is not waited for. Ratios are formed within a round.
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
from pathlib import Path

from bench.probes.latency import round_order
from bench.record import RECORD_NAME, read
from scripts.common import Rounds, ratios
from scripts.markdown import table

GRID = "--methods finetune,inflora,dualprompt,coda-prompt --scale quick --seeds 0 --set protocol.epochs=2"
REFERENCE = "serial"
POLL = 0.1

#: Name -> options of `run`.
WAYS = {
    REFERENCE: "--executor serial",
    "serial, one thread": "--executor serial --threads 1",
    "processes": "--executor processes",
    "ray": "--executor ray",
}


def seconds_until_trained(grid: str, way: str, cells: int) -> float:
    """Start the command, wait for so many records, end it."""
    with tempfile.TemporaryDirectory() as folder:
        words = shlex.split(f"{grid} {way} --results {folder}")
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", "run", *words],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )
        while len(found := list(Path(folder).glob(f"*/{RECORD_NAME}"))) < cells:
            if process.poll() is not None:
                raise RuntimeError(f"the command ended with status {process.returncode}: run {words}")
            time.sleep(POLL)
        if not all(read(path).done for path in found):
            raise RuntimeError(f"not all cells are done: run {words}")
        took = time.perf_counter() - start
        process.send_signal(signal.SIGTERM)
        process.wait()
    return took


def count(grid: str) -> int:
    """How many cells the grid has."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*shlex.split(grid), "--results", folder, "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-m", "bench", "run", *words], capture_output=True, text=True, check=True
        )
    last = done.stdout.strip().splitlines()[-1]
    return int(last.removeprefix("cells: ").partition(";")[0])


def measure(grid: str, rounds: int) -> str:
    """The table."""
    cells = count(grid)
    times: Rounds = {name: [] for name in WAYS}
    for i in range(rounds):
        for name in round_order(list(WAYS), i):
            times[name].append(seconds_until_trained(grid, WAYS[name], cells))
    share = ratios(times, REFERENCE)
    lines = [
        [
            name,
            f"{statistics.median(times[name]):.0f}",
            ", ".join(f"{1 / one:.2f}" for one in share[name]),
            f"{statistics.median(1 / one for one in share[name]):.2f}",
        ]
        for name in WAYS
    ]
    head = ["way", "seconds, median", "times as fast as serial, each round", "median"]
    return f"{cells} cells: `{grid}`\n\n" + table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each way is taken")
    parser.add_argument("--grid", default=GRID, help="options of `run`, in quotes")
    options = parser.parse_args()
    print(measure(options.grid, options.rounds))


if __name__ == "__main__":
    main()
