"""A package of methods that misbehave in their second task, registered by a real entry point."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import Record
from tests.faults.commands import facts

NAMES = {
    "raises": "Raises",
    "nan": "Nan",
    "hog": "Hog",
    "never": "Never",
    "deaf": "Deaf",
    "collects": "Collects",
}

MODULE = '''
"""Linear probes that misbehave in task 2, until the file `cured` lies beside this one."""

import gc
import time
from pathlib import Path

import torch

from methods.linear_probe import LinearProbe
from methods.registry import register

HERE = Path(__file__).parent


class Misbehaving(LinearProbe):
    def is_time(self):
        return len(self.model.head.tasks) == 2 and not (HERE / "cured").exists()

    def begin(self, strategy):
        if self.is_time():
            self.misbehave()

    def misbehave(self):
        pass


@register("raises")
class Raises(Misbehaving):
    def misbehave(self):
        raise RuntimeError("the disk\\nis on fire")


@register("nan")
class Nan(Misbehaving):
    def before_backward(self, strategy, *args, **kwargs):
        if self.is_time():
            strategy.loss = strategy.loss * float("nan")


@register("hog")
class Hog(Misbehaving):
    def misbehave(self):
        kept = []
        while True:
            kept.append(torch.ones(2**24))


@register("never")
class Never(Misbehaving):
    def misbehave(self):
        (HERE / "entered").touch()
        while True:
            pass


@register("deaf")
class Deaf(Misbehaving):
    def misbehave(self):
        (HERE / "entered").touch()
        while True:
            try:
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                (HERE / "swallowed").touch()


@register("collects")
class Collects(Misbehaving):
    """Is interrupted where Python ignores all exceptions, such as in `__del__` and in callbacks of `gc`."""

    def misbehave(self):
        gc.callbacks.append(self.linger)
        gc.collect()
        try:
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            (HERE / "obeyed").touch()
            raise

    def linger(self, phase, info):
        gc.callbacks.remove(self.linger)
        (HERE / "entered").touch()
        try:
            while True:
                time.sleep(0.01)
        finally:
            (HERE / "swallowed").touch()
'''


@dataclass(frozen=True)
class Package:
    """Where it is, and the environment of a command that finds it."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def entered(self) -> Path:
        """There once `never`, `deaf` or `collects` has begun to misbehave."""
        return self.folder / "entered"

    @property
    def swallowed(self) -> Path:
        """There once a KeyboardInterrupt was swallowed."""
        return self.folder / "swallowed"

    @property
    def obeyed(self) -> Path:
        """There once `collects` was interrupted for a second time."""
        return self.folder / "obeyed"

    def cure(self) -> None:
        """From now on the methods behave; their code is the same."""
        (self.folder / "cured").touch()

    def check_cured(self, record: Record, whole: Callable[[str], Any]) -> None:
        """The record is that of a linear probe, except for the name."""
        cured, expected = facts(record), whole("inflora,linear-probe").facts["linear-probe"]
        assert cured["config"]["method"]["name"] in NAMES
        assert _but_for_the_method(cured) == _but_for_the_method(expected)


def _but_for_the_method(facts: dict[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in facts["config"].items() if key != "method"}
    return {**facts, "config": config}


def install(beside: Path, environment: Mapping[str, str]) -> Package:
    """Put the package beside a folder, as `pip install` would."""
    folder = beside.parent / "package"
    described = folder / "misbehaving-1.0.dist-info"
    described.mkdir(parents=True)
    (folder / "misbehaving.py").write_text(MODULE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    points = "".join(f"{name} = misbehaving:{cls}\n" for name, cls in NAMES.items())
    (described / "entry_points.txt").write_text(f"[duallora_bench.methods]\n{points}")
    path = os.pathsep.join([environment["PYTHONPATH"], str(folder)])
    return Package(folder, {**environment, "PYTHONPATH": path})
