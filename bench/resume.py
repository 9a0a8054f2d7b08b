"""A cell goes on where it was interrupted: all it needs is saved after each experience, and put back.

On a CPU the numbers are then those of a cell that was never interrupted, bit for bit. So a state is used
only under the conditions it was made under; under others the cell starts from the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import checkpoint
from bench.checkpoint import DamagedError, State
from bench.manifest import code_sha256, device_name, versions
from bench.outcome import Outcome, as_notes, from_notes
from bench.progress import Notice, Observe
from bench.rng import put_back, snapshot
from bench.spec import Cell
from bench.strategy import Strategy

METHOD, RANDOM = "method.", "random."


@dataclass(frozen=True)
class Made:
    """A cell put together: the strategy, the method in it, the random streams of its data by purpose."""

    strategy: Strategy
    method: Any
    streams: Mapping[str, torch.Generator]


def method_state(state: State) -> dict[str, torch.Tensor]:
    """What `Method.state` returned."""
    return _part(state, METHOD)


def _part(state: State, prefix: str) -> dict[str, torch.Tensor]:
    named = state.tensors.items()
    return {name.removeprefix(prefix): tensor for name, tensor in named if name.startswith(prefix)}


def save(made: Made, cell: Cell, folder: Path, outcome: Outcome) -> None:
    """Keep what the cell needs to go on from here, and to have its inference measured.

    Of the earlier states that after the first experience stays: it is measured, too.

    Raises:
        StorageError: if it cannot be written.
    """
    experiences = len(outcome.spent)
    tensors, plain = snapshot(made.streams, made.strategy.device)
    learnt = made.method.state()
    state = State(
        {METHOD + n: t for n, t in learnt.items()} | {RANDOM + n: t for n, t in tensors.items()},
        {"outcome": as_notes(outcome), "random": plain, "conditions": conditions(cell, made.method)},
    )
    checkpoint.save(state, folder, experiences)
    checkpoint.keep_only(folder, (1, experiences))


def conditions(cell: Cell, method: Any) -> dict[str, str]:
    """What a number may depend on beside the cell's configuration."""
    own = {"device": device_name(cell.device), "threads": str(torch.get_num_threads())}
    return own | conditions_of_code(type(method))


def conditions_of_code(method: type) -> dict[str, str]:
    """What a model depends on, wherever it is used."""
    return {"code": code_sha256(method), **versions()}


def pick_up(made: Made, cell: Cell, folder: Path, observe: Observe) -> Outcome | None:
    """Put back the last state of the cell that can be used; None where there is none.

    A state that is damaged is set aside, and the one before it is used. One of other conditions stays until
    the first of the present ones takes its place: who has only mistaken an option can still stop.
    """
    for path in reversed(checkpoint.kept(folder).values()):
        state = _usable(path, conditions(cell, made.method), observe)
        if state is not None:
            outcome = _put_back(made, cell, state)
            observe(Notice(f"it goes on after experience {len(outcome.spent)} of {cell.tasks}"))
            return outcome
    return None


def _usable(path: Path, now: Mapping[str, str], observe: Observe) -> State | None:
    try:
        state = checkpoint.load(path)
    except DamagedError as error:
        checkpoint.set_aside(path)
        observe(Notice(f"{error}; it was set aside, and the cell goes on from an earlier state or anew"))
        return None
    then = state.notes["conditions"]
    if differing := sorted(key for key in {*then, *now} if then.get(key) != now.get(key)):
        what = ", ".join(_difference(key, then, now) for key in differing)
        observe(
            Notice(f"the state '{path}' was not used, because it was made under other conditions: {what}")
        )
        return None
    return state


def _difference(key: str, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    return "other code" if key == "code" else f"{key} was {then.get(key)} and is {now.get(key)}"


def _put_back(made: Made, cell: Cell, state: State) -> Outcome:
    strategy, notes = made.strategy, state.notes
    learnt = {name: tensor.to(strategy.device) for name, tensor in method_state(state).items()}
    made.method.restore(strategy.model, learnt)
    outcome = from_notes(notes["outcome"])
    done = len(outcome.spent)
    strategy.clock.train_exp_counter = done
    put_back(made.streams, strategy.device, _part(state, RANDOM), notes["random"])
    if done < cell.tasks:
        outcome.resumed.append(done)
    return outcome
