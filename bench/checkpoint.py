"""What a cell knows after an experience, on disk: one safetensors file, named by its own hash.

It holds what the method has learnt, the random streams, and what was measured so far. The optimiser is not
in it: a method empties it before each experience (`methods.base.claim`). Nothing is unpickled on reading.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.storage import StorageError, delete, write_whole

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "states"
NAME = re.compile(r"(?P<experiences>\d+)\.(?P<sha256>[0-9a-f]{64})\.safetensors")
NOTES = "notes"
SET_ASIDE = ".damaged"


class DamagedError(ValueError):
    """A state whose content is not what its name says."""


@dataclass(frozen=True)
class State:
    """What `save` was given, on the CPU."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def save(state: State, cell: Path, experiences: int) -> Path:
    """Keep the state after so many experiences; whole or not at all.

    Args:
        state: tensors, and notes that JSON can hold.
        cell: the folder of the cell.

    Returns:
        The path of the file.

    Raises:
        StorageError: if it cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()}
    content = to_bytes(tensors, metadata={NOTES: json.dumps(dict(state.notes))})
    path = cell / FOLDER / f"{experiences}.{hashlib.sha256(content).hexdigest()}.safetensors"
    put(path, content)
    return path


def put(path: Path, content: bytes) -> None:
    """Write a state, in the place of any other after as many experiences.

    Raises:
        StorageError: if it cannot be written.
    """
    make_folder(path.parent.parent)
    write_whole(path, content)
    for other in path.parent.glob(f"{path.name.partition('.')[0]}.*.safetensors"):
        if other != path:
            delete(other)


def make_folder(cell: Path) -> None:
    """Make the folder of a cell, but not the results folder.

    Raises:
        StorageError: if it cannot be made.
    """
    try:
        cell.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder '{cell}' ({error.strerror}); was the results folder taken away?"
        ) from None


def verify(path: Path) -> None:
    """Compare the content with the hash in the name.

    Raises:
        DamagedError: if they differ: the file was cut short or changed.
    """
    named = NAME.fullmatch(path.name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if named is None or named["sha256"] != found:
        raise DamagedError(f"the state '{path}' is damaged: its content does not have the hash in its name")


def load(path: Path) -> State:
    """A state, verified.

    Raises:
        DamagedError: if it is not what was saved.
    """
    from safetensors import SafetensorError

    verify(path)
    try:
        return _content(path)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError):  # each of its readers' own
        raise DamagedError(
            f"the state '{path}' is damaged: it has the hash in its name, but is not a state"
        ) from None


def _content(path: Path) -> State:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()[NOTES])
        if not isinstance(notes, dict):
            raise TypeError("notes have names")
        return State({name: file.get_tensor(name) for name in file.keys()}, notes)  # noqa: SIM118


def kept(cell: Path) -> dict[int, Path]:
    """The files of a cell by the number of experiences, in their order."""
    named = {path: NAME.fullmatch(path.name) for path in (cell / FOLDER).glob("*.safetensors")}
    found = {int(name["experiences"]): path for path, name in named.items() if name}
    return dict(sorted(found.items()))


def set_aside(path: Path) -> None:
    """Take a damaged file out of use, without deleting it.

    Raises:
        StorageError: if its folder cannot be written to.
    """
    try:
        path.replace(path.with_name(path.name + SET_ASIDE))
    except OSError as error:
        raise StorageError(
            f"cannot set the damaged state '{path}' aside ({error.strerror}); make its folder writable"
        ) from None


def keep_only(cell: Path, experiences: Container[int]) -> None:
    """Delete the states of a cell but those after these numbers of experiences.

    Raises:
        StorageError: if others stay.
    """
    for n, path in kept(cell).items():
        if n not in experiences:
            delete(path)


def forget(cell: Path) -> None:
    """Delete all states of a cell, damaged ones too."""
    shutil.rmtree(cell / FOLDER, ignore_errors=True)
