"""Checkpoints: what a cell has learnt after a task, in a safetensors file named by the hash of its content.

A checkpoint holds the method's state, the random streams, the predictions and the measurements so far. The
optimiser is not in it, because a method resets it before each task (`methods.base.reset_optimizer`). Nothing
is unpickled when a checkpoint is read.
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

from safetensors import SafetensorError, safe_open

from bench.storage import StorageError, delete, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "checkpoints"
NAME = re.compile(r"(?P<experiences>\d+)\.(?P<sha256>[0-9a-f]{64})\.safetensors")
NOTES = "notes"
DAMAGED_SUFFIX = ".damaged"


class DamagedError(ValueError):
    """A file whose content does not have the hash in its name, or is not a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and notes: values that JSON can hold."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def save(checkpoint: Checkpoint, cell: Path, experiences: int) -> Path:
    """Write the checkpoint of a cell that has learnt so many experiences; completely or not at all.

    Args:
        cell: the folder of the cell.

    Returns:
        The path of the file.

    Raises:
        StorageError: if it cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    content = to_bytes(tensors, metadata={NOTES: json.dumps(dict(checkpoint.notes))})
    path = cell / FOLDER / f"{experiences}.{hashlib.sha256(content).hexdigest()}.safetensors"
    store(path, content)
    return path


def store(path: Path, content: bytes) -> None:
    """Write a checkpoint file; it replaces any other of the same number of experiences.

    Raises:
        StorageError: if it cannot be written.
    """
    make_cell_folder(path.parent.parent)
    write_atomic(path, content)
    for other in path.parent.glob(f"{path.name.partition('.')[0]}.*.safetensors"):
        if other != path:
            delete(other)


def make_cell_folder(cell: Path) -> None:
    """Create the folder of a cell, but not the results folder.

    Raises:
        StorageError: if it cannot be created.
    """
    try:
        cell.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder '{cell}' ({error.strerror}); was the results folder removed?"
        ) from None


def verify(path: Path) -> None:
    """Compare the content with the hash in the name.

    Raises:
        DamagedError: if they differ, because the file was truncated or changed.
    """
    name = NAME.fullmatch(path.name)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if name is None or name["sha256"] != sha256:
        raise DamagedError(
            f"the checkpoint '{path}' is damaged: its content does not have the hash in its name"
        )


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        DamagedError: if its content is not what was saved.
    """
    verify(path)
    try:
        return _content(path)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError):  # from either of the readers
        raise DamagedError(
            f"the checkpoint '{path}' is damaged: its hash matches, but it is not a checkpoint"
        ) from None


def _content(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Checkpoint(tensors, read_notes(path))


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a checkpoint that was verified already; its tensors are not read.

    Raises:
        SafetensorError, KeyError, TypeError, ValueError: if it is not a checkpoint.
    """
    with safe_open(path, framework="np") as file:
        notes = json.loads(file.metadata()[NOTES])
    if not isinstance(notes, dict):
        raise TypeError("the notes are not an object")
    return notes


def list_checkpoints(cell: Path) -> dict[int, Path]:
    """The checkpoint files of a cell by the number of experiences, ascending."""
    names = {path: NAME.fullmatch(path.name) for path in (cell / FOLDER).glob("*.safetensors")}
    files = {int(name["experiences"]): path for path, name in names.items() if name}
    return dict(sorted(files.items()))


def quarantine(path: Path) -> None:
    """Rename a damaged file so that it is not used; it is not deleted.

    Raises:
        StorageError: if its folder cannot be written to.
    """
    try:
        path.replace(path.with_name(path.name + DAMAGED_SUFFIX))
    except OSError as error:
        raise StorageError(
            f"cannot rename the damaged checkpoint '{path}' ({error.strerror}); make its folder writable"
        ) from None


def prune(cell: Path, keep: Container[int]) -> None:
    """Delete the checkpoints of a cell, except those of these numbers of experiences.

    Raises:
        StorageError: if one cannot be deleted.
    """
    for experiences, path in list_checkpoints(cell).items():
        if experiences not in keep:
            delete(path)


def delete_all(cell: Path) -> None:
    """Delete all checkpoints of a cell, damaged ones too."""
    shutil.rmtree(cell / FOLDER, ignore_errors=True)
