"""How costs scale with the number of cells, tasks and classes, and with the image size.

    nox -s perf -- growth [--methods finetune,duallora,coda-prompt]

Each row is a separate cell, run as a user runs it, on one thread, with random images; its numbers are those
of the record. Compare rows within a table, and run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.cell.backbone import MICRO_NAME
from bench.record import RECORD_NAME, Record, read
from methods.registry import METHODS as REGISTERED
from scripts.common import write_images
from scripts.markdown import table

METHODS = "finetune,duallora,coda-prompt"
PER_CLASS, SIZE = 20, 32
TASKS, CLASSES, SIZES, CELLS = (2, 5, 10), (10, 50, 100), (32, 64, 96), (1, 10, 50)
HEADER = ("training (s)", "last task (s)", "evaluation (s)", "state of the method (MiB)", "record (KiB)")


def run(results: Path, *options: str) -> list[Path]:
    """The records of a command."""
    command = [sys.executable, "-m", "bench", "run", "--results", str(results), "--threads", "1", *options]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(results.glob(f"*/{RECORD_NAME}"))


def numbers(path: Path) -> list[str]:
    """The numbers of one record."""
    record: Record = read(path)
    assert record.cost is not None
    train = [entry.train_seconds or 0.0 for entry in record.cost.experiences]
    evaluation = sum(entry.eval_seconds or 0.0 for entry in record.cost.experiences)
    state = (record.cost.experiences[-1].stored_bytes or 0) / 2**20
    size = path.stat().st_size / 2**10
    return [f"{sum(train):.1f}", f"{train[-1]:.1f}", f"{evaluation:.1f}", f"{state:.2f}", f"{size:.0f}"]


def scaling(
    quantity: str,
    values: Sequence[int],
    methods: str,
    classes: int = 50,
    tasks: int = 5,
    run: Callable[..., list[Path]] = run,
) -> str:
    """A table of costs by one of tasks, classes and image size; the others are constant.

    Args:
        run: runs a command and returns the paths of its records.
    """
    rows = []
    for value in values:
        sizes = {"classes": classes, "tasks": tasks, "image size": SIZE} | {quantity: value}
        with tempfile.TemporaryDirectory() as folder:
            data = write_images(Path(folder) / "images", sizes["classes"], PER_CLASS, SIZE)
            options = f"--methods {methods} --seeds 0 --scale smoke --weights random --tasks {sizes['tasks']}"
            options += f" --image-size {sizes['image size']} --backbone {MICRO_NAME} --set protocol.epochs=2"
            benchmark = ["--benchmarks", f"image-folder:path={data}"]
            records = run(Path(folder) / "results", *options.split(), *benchmark)
            rows += [[f"{value}", read(path).method, *numbers(path)] for path in records]
    return table((quantity, "method", *HEADER), rows)


def planning(seeds: Sequence[int]) -> str:
    """A table of the duration of a dry run, with all methods on digits."""
    rows = []
    for n in seeds:
        with tempfile.TemporaryDirectory() as folder:
            names = ",".join(map(str, range(n)))
            start = time.perf_counter()
            run(Path(folder) / "results", "--seeds", names, "--dry-run")
            rows.append([f"{len(REGISTERED) * n}", f"{time.perf_counter() - start:.1f}"])
    return table(("cells", "planning (s)"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    options = parser.parse_args()
    print(planning(CELLS), end="\n\n")
    print(scaling("tasks", TASKS, options.methods), end="\n\n")
    print(scaling("classes", CLASSES, options.methods), end="\n\n")
    print(scaling("image size", SIZES, options.methods))


if __name__ == "__main__":
    main()
