"""What grows with what: with the number of cells, of tasks, of classes, and with the size of the image.

    nox -s perf -- growth [--methods finetune,duallora,coda-prompt]

Each line is a cell of its own, run as a user runs it, on one thread; its images are random. The numbers are
those of its record. Lines are to be compared within a table; the machine does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bench.record import RECORD_NAME, Record, read
from methods.registry import METHODS as REGISTERED
from scripts.common import random_images
from scripts.markdown import table

METHODS = "finetune,duallora,coda-prompt"
PER_CLASS, SIDE = 20, 32
TASKS, CLASSES, SIZES, CELLS = (2, 5, 10), (10, 50, 100), (32, 64, 96), (1, 10, 50)
HEAD = ("training, s", "of it the last task, s", "evaluation, s", "kept by the method, MiB", "record, KiB")


def images(folder: Path, classes: int) -> Path:
    """A folder of class folders, with random images."""
    pixels, labels = random_images(classes, PER_CLASS, SIDE)
    for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        path = folder / f"{label:03d}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    return folder


def run(results: Path, *options: str) -> list[Path]:
    """The records of a command."""
    command = [sys.executable, "-m", "bench", "run", "--results", str(results), "--threads", "1", *options]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(results.glob(f"*/{RECORD_NAME}"))


def row(path: Path) -> list[str]:
    """The numbers of one record."""
    record: Record = read(path)
    assert record.cost is not None
    assert record.cost.parameters is not None
    train = [seconds or 0.0 for seconds in record.cost.train_seconds or ()]
    evaluation = sum(seconds or 0.0 for seconds in record.cost.eval_seconds or ())
    kept = (record.cost.parameters.stored_bytes or [0])[-1] / 2**20
    size = path.stat().st_size / 2**10
    return [f"{sum(train):.1f}", f"{train[-1]:.1f}", f"{evaluation:.1f}", f"{kept:.2f}", f"{size:.0f}"]


def grown(what: str, values: Sequence[int], methods: str, classes: int = 50, tasks: int = 5) -> str:
    """A table: one of tasks, classes and image size grows, the others stay."""
    lines = []
    for value in values:
        now = {"classes": classes, "tasks": tasks, "image size": SIDE} | {what: value}
        with tempfile.TemporaryDirectory() as folder:
            path = images(Path(folder) / "images", now["classes"])
            options = f"--methods {methods} --seeds 0 --scale smoke --weights random --tasks {now['tasks']}"
            size = f"--image-size {now['image size']} --backbone micro_vit_patch4_32.cifar100"
            of = ["--benchmarks", f"image-folder:path={path}", "--set", "protocol.epochs=2"]
            records = run(Path(folder) / "results", *options.split(), *size.split(), *of)
            lines += [[f"{value}", read(path).method, *row(path)] for path in records]
    return table((what, "method", *HEAD), lines)


def planned(seeds: Sequence[int]) -> str:
    """A table: what a dry run takes, with all methods on digits."""
    lines = []
    for n in seeds:
        with tempfile.TemporaryDirectory() as folder:
            names = ",".join(map(str, range(n)))
            start = time.perf_counter()
            run(Path(folder) / "results", "--seeds", names, "--dry-run")
            lines.append([f"{len(REGISTERED) * n}", f"{time.perf_counter() - start:.1f}"])
    return table(("cells", "planning, s"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    options = parser.parse_args()
    print(planned(CELLS), end="\n\n")
    print(grown("tasks", TASKS, options.methods), end="\n\n")
    print(grown("classes", CLASSES, options.methods), end="\n\n")
    print(grown("image size", SIZES, options.methods))


if __name__ == "__main__":
    main()
