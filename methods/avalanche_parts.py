"""The parts of Avalanche that are used here, imported also where there is no home folder to write to.

Avalanche writes `~/.avalanche/config.json` when it is imported, and cannot be imported where it can neither
read nor write that file: in a container that runs as another user, on a cluster with a read-only home.
Every other module imports these names from here.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = "HOME"


def home_of_avalanche() -> Path:
    """Where Avalanche keeps its configuration."""
    return Path(os.path.expanduser("~/.avalanche"))  # noqa: PTH111  (as Avalanche does)


def is_usable(folder: Path) -> bool:
    """Whether Avalanche can read its configuration in a folder, or write a new one there."""
    if not folder.is_absolute():  # the user has no home
        return False
    try:
        if (config := folder / "config.json").exists():
            return isinstance(json.loads(config.read_text(encoding="utf-8")), dict)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def a_home() -> Iterator[bool]:
    """A temporary home folder inside the block, where Avalanche cannot use the real one.

    Yields:
        Whether it is temporary.
    """
    if is_usable(home_of_avalanche()):
        yield False
        return
    real = os.environ.get(HOME)
    with tempfile.TemporaryDirectory(prefix="duallora-bench-home-") as folder:
        os.environ[HOME] = folder
        try:
            yield True
        finally:
            if real is None:
                del os.environ[HOME]
            else:
                os.environ[HOME] = real


with a_home() as temporary:
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.datasets.dataset_utils import set_dataset_root
    from avalanche.benchmarks.utils import as_classification_dataset, concat_datasets
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.templates import SupervisedTemplate

if temporary:  # Avalanche's own data sets are not to be searched for in a folder that is gone
    set_dataset_root(str(home_of_avalanche() / "data"))

__all__ = [
    "SupervisedPlugin",
    "SupervisedTemplate",
    "as_classification_dataset",
    "benchmark_from_datasets",
    "concat_datasets",
    "with_classes_timeline",
]
