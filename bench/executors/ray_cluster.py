"""Cells on a Ray cluster: each a task with its share of CPUs and GPUs, on whichever machine Ray finds.

A task runs its cell in a process of its own, as on one machine, so a cell's faults are told alike. Ray is
there for what one machine does not have: placing tasks, and running them again where a machine is lost.
Records come back through Ray. So do states, from machines that do not see the results folder.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from bench import checkpoint
from bench.benchmarks.base import data_roots
from bench.claims import FOLDER
from bench.executors import Left, Told
from bench.executors.alone import POLL, Answer, DiedError, Running, Share, start
from bench.executors.spread import Spread
from bench.manifest import Circumstances, code_sha256
from bench.plan import Places, Planned
from bench.progress import News, Notice, Observe, Tick
from bench.spec import Cell
from bench.stopping import Stop, listening
from bench.storage import StorageError, write_whole
from methods.errors import UsageError
from methods.registry import METHODS

#: How often a cell is begun again, because the machine or the process that ran it was lost.
RETRIES = 3
#: Seconds between two ticks that a task passes on.
TICKS = 1.0

#: Seconds for somebody at a cluster's address to answer; Ray itself would try for many minutes.
REACH = 5.0

#: Ray neither reports home nor changes how a task sees the GPUs it did not ask for.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
#: Seconds within which Ray ends the processes of a machine that it has given up.
NODE_ENDS = 3.0

#: States of a cell: file name -> content.
States = Mapping[str, bytes]


@dataclass(frozen=True)
class Back:
    """What a task brings back. `states`: those that the results folder lacks."""

    ended: Any = None
    error: Exception | None = None
    overdue: bool = False
    states: States = field(default_factory=dict)


class Board:
    """Where tasks leave their news; an actor beside the command that started the grid."""

    def __init__(self) -> None:
        self.news: list[tuple[str, News]] = []
        self.begun: dict[str, int] = {}

    def begin(self, cell: str) -> int:
        """How often the cell was begun, this time included."""
        self.begun[cell] = self.begun.get(cell, 0) + 1
        return self.begun[cell]

    def tell(self, cell: str, news: News) -> None:
        """Leave news."""
        self.news.append((cell, news))

    def take(self) -> list[tuple[str, News]]:
        """The news since the last call."""
        taken, self.news = self.news, []
        return taken


@contextmanager
def ray_crew(spread: Spread, places: Places, how: Circumstances, limit: float | None) -> Iterator[RayCrew]:
    """A crew on the cluster at `spread.address`, or on a Ray that is started here and ended afterwards.

    Raises:
        UsageError: if Ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(spread)
    here = places.results.absolute()
    token = here / FOLDER / f"{uuid.uuid4().hex}.here"
    try:
        write_whole(token, b"")
        yield RayCrew(ray, spread, replace(places, results=here), how, limit, token)
    finally:
        token.unlink(missing_ok=True)
        ray.shutdown()


def _connected(spread: Spread) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if spread.address is None and "RAY_AUTH_MODE" not in os.environ:
        # Ray would else leave a token in the home folder, which clusters started later then ask for.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--executor ray needs the package ray: pip install 'duallora-bench[ray]'; "
            "without it there is --executor processes"
        ) from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if spread.address is not None:
            _reach(spread.address)
            ray.init(address=spread.address, **quiet)
        else:
            ray.init(address="local", num_cpus=_cpus(spread), include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = spread.address or "this machine"
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"cannot use Ray at {where} ({type(error).__name__}: {first}); start it: ray start --head; "
            "give its --ray-address HOST:PORT (with RAY_AUTH_MODE=token, if it asks for a token), or leave "
            "that out for a Ray of the command's own"
        ) from None
    return ray


def _reach(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT; other forms of an address are Ray's to understand."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH).close()


def _cpus(spread: Spread) -> int:
    import torch

    return max(torch.get_num_threads(), spread.threads * (spread.workers or 1))


class RayCrew:
    """Those whom Ray finds room for."""

    def __init__(
        self, ray: Any, spread: Spread, places: Places, how: Circumstances, limit: float | None, token: Path
    ) -> None:
        self.ray, self.spread, self.places, self.how, self.limit, self.token = (
            ray,
            spread,
            places,
            how,
            limit,
            token,
        )
        self.refs: dict[Any, Cell] = {}
        self.said: list[Told | Left] = []
        near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self.board = ray.remote(num_cpus=0, max_restarts=-1)(Board).options(scheduling_strategy=near).remote()
        gpus = 1 if spread.device == "cuda" else 0
        self.asked = {"num_cpus": spread.threads, "num_gpus": gpus, "max_retries": RETRIES}
        self.share = Share(spread.device, spread.threads)

    # ---- the crew --------------------------------------------------------------------------------

    def room(self) -> bool:
        most = self.spread.workers or self._capacity()
        return len(self.refs) < max(1, most)

    def _capacity(self) -> int:
        """How many cells fit on the machines that are there now."""
        return sum(self._fit(node["Resources"]) for node in self.ray.nodes() if node["Alive"])

    def _fit(self, resources: Mapping[str, float]) -> int:
        cpus = int(resources.get("CPU", 0) // self.asked["num_cpus"])
        return min(cpus, int(resources.get("GPU", 0))) if self.asked["num_gpus"] else cpus

    def take(self, planned: Planned) -> None:
        task = self.ray.remote(run_task).options(**self.asked, name=planned.cell.id)
        code = code_sha256(METHODS[planned.cell.method.name].load())
        ref = task.remote(
            planned,
            self.places,
            self.how,
            self.share,
            self.limit,
            self.token,
            code,
            self.board,
            self._sent([planned.cell]),
        )
        self.refs[ref] = planned.cell
        if self._capacity() == 0:
            self.said.append(Told(planned.cell, Notice(self._no_room())))

    def _no_room(self) -> str:
        gpu = " and a GPU" if self.asked["num_gpus"] else ""
        return (
            f"no node of the cluster has {self.asked['num_cpus']} CPUs{gpu} at present; it waits for one to "
            "join; with fewer --threads it may fit on those that are there"
        )

    def _sent(self, cells: Sequence[Cell]) -> list[Any]:
        """The states of cells, for machines that do not see them; fetched by those alone."""
        states = {cell.id: states_in(self.places.results / cell.id) for cell in cells}
        return [self.ray.put(states)] if any(states.values()) else []

    def hear(self, seconds: float) -> list[Told | Left]:
        if self.refs:
            self.ray.wait(list(self.refs), timeout=seconds)
        else:
            time.sleep(seconds)
        heard, self.said = [*self.said, *self._told()], []
        ready, _ = (
            self.ray.wait(list(self.refs), num_returns=len(self.refs), timeout=0) if self.refs else ([], [])
        )
        return heard + [self._left(ref) for ref in ready]

    def _told(self) -> Iterator[Told]:
        at_work = {cell.id: cell for cell in self.refs.values()}
        for cell, news in self._news():
            if cell in at_work:
                yield Told(at_work[cell], news)

    def _news(self) -> list[tuple[str, News]]:
        try:
            taken: list[tuple[str, News]] = self.ray.get(self.board.take.remote(), timeout=10 * POLL)
        except self.ray.exceptions.RayError:  # a board that is lost is begun anew, and news are only news
            return []
        return taken

    def _left(self, ref: Any) -> Left:
        cell = self.refs.pop(ref)
        try:
            back: Back = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            return Left(cell, error=_in_our_words(self.ray, error))
        try:
            write_states(self.places.results / cell.id, back.states)
        except StorageError as error:
            return Left(cell, error=error)
        return Left(cell, back.ended, back.error, back.overdue)

    def stop(self) -> None:
        for ref in self.refs:
            self.ray.cancel(ref)

    def kill(self) -> None:
        for ref in self.refs:
            self.ray.cancel(ref, force=True)

    def hold(self, cells: Sequence[Cell], tell: Observe, stop: Stop) -> Any:
        task = self.ray.remote(hold_task).options(**self.asked)
        ref = task.remote(cells, self.places, self.share, self.token, self.board, self._sent(cells))
        while not (stop.asked or self.ray.wait([ref], timeout=POLL)[0]):
            for _, news in self._news():
                tell(news)
        if stop.asked:
            self._end(ref, stop)
            raise KeyboardInterrupt
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            raise _in_our_words(self.ray, error) from None

    def _end(self, ref: Any, stop: Stop) -> None:
        """Cancel a task, once: it would take a second time for a wish to end at once."""
        self.ray.cancel(ref)
        while not self.ray.wait([ref], timeout=POLL)[0]:
            if stop.at_once:
                self.ray.cancel(ref, force=True)


def _in_our_words(ray: Any, error: Any) -> Exception:
    """What an error of Ray's says: what the task raised, or what became of it."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(cause, Exception):
        return cause
    first = str(error).strip().partition("\n")[0]
    return DiedError(
        f"{type(error).__name__} of Ray, after {RETRIES} attempts more: {first}",
        for_memory=isinstance(error, ray.exceptions.OutOfMemoryError),
    )


def states_in(folder: Path) -> States:
    """The states of a cell, as they lie there."""
    return {path.name: path.read_bytes() for path in checkpoint.kept(folder).values()}


def write_states(cell: Path, states: States) -> None:
    """Put states that were brought where they belong, in the place of others after as many experiences.

    Raises:
        StorageError: if they cannot be written.
    """
    for name, content in states.items():
        checkpoint.put(cell / checkpoint.FOLDER / name, content)


# ---- on the machine that does the work -------------------------------------------------------------


def run_task(
    planned: Planned,
    places: Places,
    how: Circumstances,
    share: Share,
    limit: float | None,
    token: Path,
    code: str,
    board: Any,
    sent: Sequence[Any],
) -> Back:
    """Run a cell in a process of its own; never raises what the cell may be blamed for."""
    from bench.runner import run_cell

    cell = planned.cell
    _check_code(cell, code)
    if _begun(board, cell) > RETRIES + 1:
        return Back(error=DiedError(f"the machine or the process that ran it was lost {RETRIES + 1} times"))
    with _places_here(places, token, [cell], sent) as here:
        tell = _teller(board, cell.id)
        tell(Notice(f"runs on {socket.gethostname()}"))
        running = start(run_cell, planned, here, how, share=share, seconds=limit)
        answer = _followed(running, tell)
        brought = states_in(here.results / cell.id) if here.results != places.results else {}
        return Back(answer.result, answer.error, running.overdue, brought)


def _followed(running: Running, observe: Observe) -> Answer:
    """The work's answer. Ray cancels a task by what looks like Ctrl-C, and so the work then ends."""
    answer = None
    with listening() as stop:
        while answer is None:
            wait([running.connection], POLL)
            if stop.asked:
                running.stop()
            answer = running.listen(observe)
    if isinstance(answer.error, DiedError):
        time.sleep(NODE_ENDS)  # was it this machine that ended? Then nobody is left to put it on the cell
    return answer


def _begun(board: Any, cell: Cell) -> int:
    import ray

    with suppress(ray.exceptions.RayError):
        return int(ray.get(board.begin.remote(cell.id), timeout=60))
    return 1


def _check_code(cell: Cell, code: str) -> None:
    if code_sha256(METHODS[cell.method.name].load()) != code:
        raise UsageError(
            f"the machine '{socket.gethostname()}' has other code than the one that started the grid; "
            "install the same version of this project and of the method's package on all machines"
        )


def hold_task(
    cells: Sequence[Cell], places: Places, share: Share, token: Path, board: Any, sent: Sequence[Any]
) -> Any:
    """Measure the inference of cells, as `bench.measure.hold` does."""
    from bench.measure import hold

    with _places_here(places, token, cells, sent) as here, listening() as stop:
        return hold(cells, here, share, _teller(board, ""), stop)


@contextmanager
def _places_here(places: Places, token: Path, cells: Sequence[Cell], sent: Sequence[Any]) -> Iterator[Places]:
    """This machine's places; the results folder where it is seen from here, else one for the time being."""
    places = replace(places, roots=tuple(dict.fromkeys((*places.roots, *data_roots(None)))))
    if token.exists():
        yield places
        return
    import ray

    with tempfile.TemporaryDirectory(prefix="duallora-bench-") as scratch:
        states = ray.get(sent[0]) if sent else {}
        for cell in cells:
            write_states(Path(scratch) / cell.id, states.get(cell.id, {}))
        yield replace(places, results=Path(scratch))


def _teller(board: Any, cell: str) -> Observe:
    """Passes news on to the board: every notice, and a tick now and then or where the experience changes."""
    last: list[Any] = [0.0, None]

    def tell(news: News) -> None:
        at = (news.activity, news.experience) if isinstance(news, Tick) else None
        if isinstance(news, Notice) or at != last[1] or time.monotonic() - last[0] >= TICKS:
            last[:] = [time.monotonic(), at]
            board.tell.remote(cell, news)

    return tell
