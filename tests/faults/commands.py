"""The real command in a separate session, with real signals; and the files that it leaves, by plain names."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench import predictions
from bench.cell import checkpoint
from bench.grid.locks import FOLDER as LOCKS
from bench.record import RECORD_NAME, Record, read

T = TypeVar("T")

CODE = Path(__file__).parents[2]
#: Seconds after which a test gives up waiting for an event; nothing is measured by it.
LIMIT = 300.0
#: Seconds between two checks.
POLL = 0.02
TASKS = 3
#: Four epochs: an experience of `finetune` takes about a second, so that there is time to do something to it.
TINY = (
    *("--scale", "smoke", "--seeds", "0", "--tasks", str(TASKS), "--weights", "random", "--threads", "1"),
    *("--set", "protocol.epochs=4", "--executor", "serial"),  # so that a test knows which cell it disturbs
)
#: What a worker writes into /proc/PID/oom_score_adj; its process is recognised by it.
OF_WORKER = "500"

#: What an interruption must not change: of a record, and of its cost of each experience.
RESULTS = ("status", "correct", "counts", "predictions", "diagnostics", "class_order", "config")
SIZES = ("train_images", "flops", "trainable", "stored", "stored_bytes", "deployed", "deployed_bytes")


def wait_until(condition: Callable[[], T], what: str, output: Callable[[], str] = str) -> T:
    """The value of the condition, as soon as it is true."""
    give_up = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < give_up, f"waited in vain for {what}\n{output()}"
        time.sleep(POLL)
    return value


def grid_of(methods: str) -> tuple[str, ...]:
    """The arguments of a grid of these methods on `digits`."""
    return ("--methods", methods, *TINY)


@dataclass(frozen=True)
class Result:
    """How a command ended; `output` is what it printed, on either stream."""

    status: int
    output: str


class Command:
    """`python -m bench run ARGUMENTS` in `folder`, started.

    `before`: called in the process before the command is; `environment`: what is added to it.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.results = folder, folder / "results"
        self.printed = folder.parent / f"{folder.name}.{time.monotonic_ns()}.txt"

        def prepare() -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)  # whatever the tests were started with
            before()

        with self.printed.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench", "run", *arguments],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def output(self) -> str:
        return self.printed.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], T], what: str) -> T:
        """The value of the condition, as soon as it is true, while the command runs."""

        def condition_while_it_runs() -> T:
            ended = self.process.poll() is not None
            value = condition()
            assert value or not ended, f"the command ended before {what}\n{self.output}"
            return value

        return wait_until(condition_while_it_runs, what, lambda: self.output)

    def wait_for_words(self, words: str) -> None:
        """Until the command has printed them."""
        self.wait_for(lambda: words in self.output, f"the words '{words}'")

    def wait_for_checkpoint(self, tasks: int = 1, method: str = "*") -> Path:
        """The checkpoint of a cell after so many tasks, or more."""

        def path() -> Path | None:
            paths = self.results.glob(f"{method}-digits-*/checkpoints/*.safetensors")
            return next((p for p in paths if int(p.name.partition(".")[0]) >= tasks), None)

        return self.wait_for(path, f"a checkpoint after {tasks} tasks")

    def wait_for_worker(self) -> int:
        """The process of a cell, or of a measurement."""
        return self.wait_for(lambda: next(iter(self.workers()), 0), "a worker")

    def workers(self) -> list[int]:
        """The processes of cells and measurements that there are now."""
        return [
            pid for pid in processes_of(self.process.pid) if _first_line(pid, "oom_score_adj") == OF_WORKER
        ]

    def helpers(self) -> list[int]:
        """The processes that are there for the work to come: Python's tracker, the server for forks."""
        return [pid for pid in processes_of(self.process.pid) if pid != self.process.pid]

    def signal(self, number: signal.Signals) -> None:
        """To the command's own process."""
        self.process.send_signal(number)

    def signal_all(self, number: signal.Signals) -> None:
        """To every process of the command, as a terminal does on Ctrl-C."""
        os.killpg(self.process.pid, number)

    def result(self) -> Result:
        """How it ended. No process of it is left then, and no traceback was printed."""
        wait_until(lambda: self.process.poll() is not None, "the end of the command", lambda: self.output)
        wait_until(lambda: not processes_of(self.process.pid), "the end of the command's other processes")
        assert "Traceback" not in self.output, self.output
        return Result(self.process.returncode, self.output)

    def end(self) -> None:
        """Kill what is left of it, whether the test passed or not."""
        for pid in {*processes_of(self.process.pid), self.process.pid}:
            if pid == self.process.pid and self.process.poll() is not None:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def processes_of(session: int) -> list[int]:
    """The processes of a session that are alive."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _in(path, session)]


def _in(process: Path, session: int) -> bool:
    try:
        state, _, _, current, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(current) == session and state not in "ZX"


def _first_line(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


# ---- what is on disk -----------------------------------------------------------------------------


def on_disk(results: Path) -> set[str]:
    """The files of a results folder, without hashes in their names.

    Such as `finetune/record.json`, `finetune/predictions`, `finetune/checkpoints/2`, `.../2.damaged`.

    Lock files may be there, and are empty.
    """
    files = [path for path in results.rglob("*") if path.is_file()]
    locks = [path for path in files if path.parent == results / LOCKS and path.suffix == ".lock"]
    assert [path for path in locks if path.stat().st_size] == []
    return {in_words(path.relative_to(results)) for path in files if path not in locks}


def in_words(path: Path) -> str:
    """The relative name of a file without hashes, and without the number of a process."""
    name = re.sub(r"^([^/]+)-digits-s0-[0-9a-f]{12}/", r"\1/", str(path))
    name = re.sub(r"\.[0-9a-f]{64}\.safetensors", "", name)
    name = re.sub(r"predictions-[0-9a-f]{12}\.safetensors", "predictions", name)
    return re.sub(r"(/\.[^/]+)\.\d+$", r"\1.PID", name)


def done_files(*methods: str) -> set[str]:
    """The files of finished cells whose inference is measured, as `on_disk` names them."""
    return {f"{method}/{name}" for method in methods for name in ("record.json", "predictions")}


def check_predictions(results: Path) -> None:
    """The predictions of every finished cell are intact, and have the accuracies of its record."""
    for path in results.glob(f"*/{RECORD_NAME}"):
        record = read(path)
        if record.done:
            _check_counts(record, predictions.read(record.predictions, path.parent))


def _check_counts(record: Record, predicted: predictions.Predictions) -> None:
    hits = (predicted.predicted == predicted.true).sum(1).tolist()
    assert record.correct is not None
    assert hits == [sum(count or 0 for count in row) for row in record.correct]


def contents(results: Path) -> dict[str, bytes]:
    """What is in the files of a results folder, but for the locks."""
    files = (path for path in results.rglob("*") if path.is_file() and path.parent.name != LOCKS)
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def cell_of(results: Path, method: str) -> Path:
    """The folder of the one cell of a method."""
    (folder,) = results.glob(f"{method}-digits-s0-*")
    return folder


def record_of(results: Path, method: str) -> Record:
    """The record of the one cell of a method; it is valid."""
    return read(cell_of(results, method) / RECORD_NAME)


def statuses(results: Path) -> dict[str, str]:
    """By method; all records are valid."""
    records = [read(path) for path in results.glob(f"*/{RECORD_NAME}")]
    return {record.method: record.status for record in records}


def check_checkpoints(results: Path) -> None:
    """Every checkpoint that is in use is intact."""
    for path in results.glob(f"*/{checkpoint.FOLDER}/*.safetensors"):
        checkpoint.verify(path)


def facts(record: Record) -> dict[str, Any]:
    """All of a record that times, and the way the cell was run, have no part in."""
    plain, cost = record.model_dump(mode="json"), record.cost
    assert cost is not None
    return (
        {name: plain[name] for name in RESULTS}
        | {name: cost.by_experience(name) for name in SIZES}
        | {"accuracy_matrix": record.accuracy_matrix, "metrics": record.metrics}
        | {"plain_flops": cost.plain_flops}
    )
