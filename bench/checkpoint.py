"""What a method has learnt, on disk: a safetensors file an experience, in the folder of its cell."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "states"


def save(state: Mapping[str, Tensor], cell: Path, experiences: int) -> Path:
    """Keep the state after so many experiences; whole or not at all.

    Args:
        state: what `Method.state` returns.
        cell: the folder of the cell.

    Returns:
        The path of the file.

    Raises:
        OSError: if the folder cannot be made or the disk is full.
    """
    from safetensors.torch import save_file

    path = cell / FOLDER / f"{experiences}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def load(path: Path) -> dict[str, Tensor]:
    """What `save` was given, on the CPU."""
    from safetensors.torch import load_file

    return load_file(path)


def kept(cell: Path) -> dict[int, Path]:
    """The files of a cell by the number of experiences, in their order."""
    found = {int(path.stem): path for path in (cell / FOLDER).glob("*.safetensors")}
    return dict(sorted(found.items()))


def forget(cell: Path) -> None:
    """Delete all files of a cell."""
    shutil.rmtree(cell / FOLDER, ignore_errors=True)
