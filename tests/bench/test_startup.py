"""The command's own process imports nothing heavy: not to plan a grid, to run it, or to print its results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "torchvision", "timm", "avalanche", "sklearn", "pandas", "matplotlib"}

#: A command in a process that prints, when it ends, what it has imported.
COMMAND = """
import sys
from bench.cli import main
status = main(sys.argv[1:])
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(status)
"""


def imported_by(folder: Path, *arguments: str) -> set[str]:
    """The packages that a command has imported in its own process."""
    environment = os.environ | {"DUALLORA_BENCH_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    completed = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(completed.stdout.rpartition("imported:")[2].split())


def test_a_grid_is_planned_run_measured_and_printed_without_torch_in_the_commands_process(
    tmp_path: Path,
) -> None:
    imported = imported_by(tmp_path, "run", "--methods", "ncm", "--scale", "smoke", "--seeds", "0")
    assert "rich" in imported
    assert imported & HEAVY == set()
    assert len(list((tmp_path / "results").glob("ncm*/record.json"))) == 1
