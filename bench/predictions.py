"""The predicted class of every test image after every experience: a safetensors file beside the record.

The record names the file and its sha256, so that a file that is missing, truncated or another one is noticed
when it is read. The record's numbers do not depend on it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from bench.model import FrozenModel
from methods.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFIX = "predictions-"
PATTERN = f"{PREFIX}*.safetensors"
#: Classes below this number fit into uint16, beside the mark of what was not evaluated.
UINT16_CLASSES = 2**16 - 1


class PredictionsError(UsageError):
    """A predictions file that cannot be used. The message names the file and what to do."""


class PredictionsFile(FrozenModel):
    """Where the predictions of a record are: a file in the record's folder, and the sha256 of its content."""

    file: str = Field(pattern=r"^predictions-[0-9a-f]{12}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of N test images after each of T experiences. Classes are the data set's class numbers.

    Attributes:
        rows: (N,) int32, the images' row numbers in the data set that they were taken from, ascending.
        true: (N,) the images' classes.
        predicted: (T, N) the predicted classes; `not_evaluated` where an image was not evaluated.
    """

    rows: NDArray[np.int32]
    true: NDArray[np.integer]
    predicted: NDArray[np.integer]

    @property
    def not_evaluated(self) -> int:
        """The mark in `predicted` of an image that was not evaluated: the largest value of its type."""
        import numpy as np

        return int(np.iinfo(self.predicted.dtype).max)


def class_dtype(classes: int) -> type[np.integer]:
    """The type that holds so many class numbers and the mark of what was not evaluated."""
    import numpy as np

    return np.uint16 if classes <= UINT16_CLASSES else np.int32


def to_bytes(predictions: Predictions) -> bytes:
    """The content of the file."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {"rows": predictions.rows, "true": predictions.true, "predicted": predictions.predicted}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def describe_file(content: bytes) -> PredictionsFile:
    """The entry of the record for a file of this content; the name changes with the content."""
    sha256 = hashlib.sha256(content).hexdigest()
    return PredictionsFile(file=f"{PREFIX}{sha256[:12]}.safetensors", sha256=sha256)


def read(entry: PredictionsFile | None, folder: Path) -> Predictions:
    """Read and verify the predictions of a record.

    Args:
        entry: `Record.predictions`.
        folder: the folder of the record.

    Raises:
        PredictionsError: if the record has none, or the file is missing, damaged or another one.
    """
    if entry is None:
        raise PredictionsError(
            f"the record in '{folder}' has no predictions: they are kept from schema 6 on; to compare "
            "it by image, repeat the command with --rerun all and only this method, benchmark and seed"
        )
    path = folder / entry.file
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise _error(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise _error(path, "is truncated or is not the file that the record names: its sha256 differs")
    return _parse(path, content)


def _parse(path: Path, content: bytes) -> Predictions:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        predictions = Predictions(**load(content))
    except (SafetensorError, TypeError, ValueError, KeyError):
        raise _error(path, "has the right sha256, but does not hold predictions") from None
    images, shape = len(predictions.rows), predictions.predicted.shape
    if len(shape) != 2 or shape[1] != images or len(predictions.true) != images:
        raise _error(path, f"has predictions of shape {shape} for {images} images")
    return predictions


def _error(path: Path, problem: str) -> PredictionsError:
    return PredictionsError(
        f"the predictions file '{path}' {problem}; accuracies are not affected, but comparisons by image are "
        "not possible. Restore the file, or repeat the command with --rerun all and only this method, "
        "benchmark and seed"
    )
