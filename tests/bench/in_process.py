"""Executors that run cells and measure inference in this process, where a test can watch the work."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.cell.outcome import InferenceResult
from bench.cell.progress import Message, Observer
from bench.grid.executors import EXECUTORS
from bench.grid.executors.auto import AutoExecutor
from bench.grid.executors.processes import ProcessExecutor
from bench.grid.executors.serial import SerialExecutor
from bench.grid.executors.worker_process import Resources, WorkerResult
from bench.grid.sessions import run_session
from bench.grid.stopping import Stop
from bench.spec import Cell
from methods.registry import Entry

#: Images per call: enough to execute every line.
BATCHES = {"cpu": (1, 2)}


def run_here(
    function: Callable[..., Any], *arguments: Any, resources: Resources, observe: Observer, stop: Stop
) -> Any:
    """In place of `run_in_process`: the result of `function(*arguments, observe)`, run in this process."""
    return function(*arguments, observe)


class Done:
    """In place of a `Worker`: the function ran in this process; its messages and result wait to be read."""

    timed_out = False

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, resources: Resources, seconds: float | None
    ) -> None:
        self.messages: list[Message] = []
        self.connection, self.other_end = multiprocessing.Pipe(duplex=False)
        self.other_end.send("ready")
        try:
            self.result = WorkerResult(function(*arguments, self.messages.append))
        except Exception as error:  # as a separate process passes it on
            self.result = WorkerResult(error=error)

    def poll(self, observe: Observer) -> WorkerResult:
        for message in self.messages:
            observe(message)
        return self.result

    def stop(self) -> None: ...
    def kill(self) -> None: ...


def in_this_process(
    base: type[ProcessExecutor], start: Callable[..., Any] = Done, run: Callable[..., Any] = run_here
) -> type[ProcessExecutor]:
    """The executor, with other functions in place of those that start processes.

    Args:
        start: starts a cell, as `bench.grid.executors.worker_process.start_worker` does.
        run: runs a measurement, as `bench.grid.executors.worker_process.run_in_process` does.
    """

    class InThisProcess(base):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, start=start)

        def measure_inference(
            self, cells: Sequence[Cell], observe: Observer, stop: Stop
        ) -> dict[str, InferenceResult]:
            return run_session(cells, self.paths, self.first, observe, stop, batches=BATCHES, run=run)

    return InThisProcess


@dataclass(frozen=True)
class Loaded(Entry):
    """An entry of a registry whose class is there already."""

    loaded: Any = None

    def load(self) -> Any:
        return self.loaded


@dataclass(frozen=True)
class Executors(Mapping[str, Entry]):
    """The registered executors, with other classes in place of some of them.

    A name that is in neither is refused as `EXECUTORS` refuses it.
    """

    classes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Entry:
        if name in self.classes:
            return Loaded(name, "a test", "of a test", self.classes[name])
        return EXECUTORS[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.classes, *EXECUTORS]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def executors(**functions: Callable[..., Any]) -> Executors:
    """The executors of this machine, in this process; `functions` as `in_this_process` takes them."""
    return Executors(
        {
            "auto": in_this_process(AutoExecutor, **functions),
            "serial": in_this_process(SerialExecutor, **functions),
            "processes": in_this_process(ProcessExecutor, **functions),
        }
    )


def saving(save: Callable[..., None]) -> Executors:
    """As `executors`, with `save` in place of `bench.cell.resume.save`: called where a checkpoint is due."""

    def start(function: Callable[..., Any], *arguments: Any, **options: Any) -> Done:
        return Done(partial(function, save=save), *arguments, **options)

    return executors(start=start)
