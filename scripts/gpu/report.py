"""Everything that only a GPU can show: probes against known answers, cells, and what each method costs.

    nox -s gpu [-- --out results/gpu.md] [--methods all] [--precision bf16]

Takes at most ten minutes, and uses every GPU there is. The page is printed and written to a file. The exit
status is 0 if every check is as expected and every method has a cell. Where there is no GPU, it is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.cell.manifest import device_name, git_state, now
from bench.record import Record
from methods.registry import METHODS
from scripts.gpu import cells, checks
from scripts.gpu.cells import Command, Setting
from scripts.gpu.checks import Check
from scripts.markdown import table

LIMIT = 600.0
OUT = Path("results", "gpu.md")
NO_GPU = (
    "there is no GPU: torch sees no CUDA device here, and everything that this command measures needs one; "
    "run it on a machine that has one, with a torch that was built for CUDA (python -m bench doctor)"
)


@dataclass(frozen=True)
class Findings:
    """What was found on a device: checks by name, and a record of each method."""

    checks: Mapping[str, Check]
    records: Mapping[str, Record | None]

    @property
    def passed(self) -> bool:
        """Whether every check is as expected, and every method has a cell that is done."""
        return all(check.passed for check in self.checks.values()) and all(
            record is not None and record.done for record in self.records.values()
        )


def examine(
    device: torch.device, setting: Setting, folder: Path, left: Callable[[], float], run: Command
) -> Findings:
    """Make all checks on a device, then run the full-size cells; files are written below `folder`.

    Args:
        left: the seconds that are left.
    """
    found = {}
    for name, make in checks_of(device, folder, left, run).items():
        found[name] = checks.guarded(make)
        print(f"{name}: {found[name].found}", file=sys.stderr, flush=True)
    return Findings(found, cells.full_size(setting, device, folder, left(), run))


def checks_of(
    device: torch.device, folder: Path, left: Callable[[], float], run: Command
) -> dict[str, Callable[[], Check]]:
    """The checks of a device, by name."""
    makes = {**checks.CHECKS, **(checks.CHECKS_OF_GPU if device.type == "cuda" else {})}
    return {name: partial(make, device, folder) for name, make in makes.items()} | {
        "the tests that need a GPU": lambda: cells.waiting_tests(folder, left(), run),
        "--executor processes": lambda: cells.every_gpu(device, folder, left(), run),
    }


# ---- the page -------------------------------------------------------------------------------------------


def page(device: torch.device, setting: Setting, findings: Findings, seconds: float) -> str:
    """The findings in Markdown."""
    commit, dirty = git_state()
    known = [
        [name, check.expected, check.found, "yes" if check.passed else "**no**"]
        for name, check in findings.checks.items()
    ]
    rows = [cells.row(method, record) for method, record in findings.records.items()]
    return "\n\n".join(
        [
            f"# {device_name(device.type)}",
            f"{torch.cuda.device_count()} GPUs, torch {torch.__version__}, CUDA {torch.version.cuda}, commit "
            f"{commit}{' with changes' if dirty else ''}, {now()}, {seconds:.0f} s",
            table(("check", "expected", "found", "as expected"), known, heads=3),
            f"A cell of each method: {setting.backbone}, random weights, {setting.image_size} px, "
            f"{setting.precision}, {setting.classes} classes of random images in two tasks, no features "
            "kept; training: the last task",
            table(cells.HEADER, rows),
        ]
    )


# ---- the command ----------------------------------------------------------------------------------------


def write(device: torch.device, setting: Setting, out: Path, run: Command = cells.command) -> bool:
    """Examine a device, print the page and write it; returns whether all is as expected."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        findings = examine(
            device, setting, Path(folder), lambda: LIMIT - cells.GRACE - (time.monotonic() - start), run
        )
    text = page(device, setting, findings, time.monotonic() - start)
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    return findings.passed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help=f"file of the page (default: {OUT})")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="bf16", help="of the full-size cells"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    setting = Setting(options.methods, precision=options.precision)
    if not write(torch.device("cuda"), setting, options.out):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
