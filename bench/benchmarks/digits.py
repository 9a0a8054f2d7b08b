"""scikit-learn's 1,797 handwritten digits, 8x8 pixels, 10 classes; embedded, nothing to download.

The test set is a stratified fifth, chosen by the rank of names (`splits.hold_out`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from bench.benchmarks import register
from bench.benchmarks.base import Benchmark, Dataset, ImageSet, NoOptions, Scale, make_scales
from bench.benchmarks.pixels import ArrayPixels
from bench.benchmarks.splits import HELD_OUT, hold_out, split_by_rows
from methods.errors import UsageError

#: `Dataset.sha256` of the digits that scikit-learn ships.
SHA256 = "633921006648b2f3ef430fef6390b02abf2de27b7bad565b3218b41f18b387e1"
DARKEST = 16  # a pixel counts the strokes in a cell of 4x4: 0 to 16


@register("digits")
class Digits(Benchmark[NoOptions]):
    """Grey values 0..16 become 0..255; images stay 8x8 and are enlarged by batch, on the model's device."""

    pinned = True
    default_tasks = 5
    image_size = 32
    augmentation = "none"
    backbone = "micro_vit_patch4_32.cifar100"
    scales = make_scales(
        smoke=Scale(train_per_class=12, test_per_class=6, epochs=1, batch_size=16),
        quick=Scale(train_per_class=None, test_per_class=None, epochs=3, batch_size=32),
        full=Scale(train_per_class=None, test_per_class=None, epochs=3, batch_size=32),
    )

    def locate(self, roots: Sequence[Path]) -> Path | None:
        """The file inside scikit-learn; the package is not imported."""
        package = importlib.util.find_spec("sklearn")
        if package is None or package.origin is None:
            return None
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        return file if file.is_file() else None

    def open(self, roots: Sequence[Path]) -> Dataset:
        import numpy as np
        from sklearn.datasets import load_digits

        values, labels = load_digits(return_X_y=True)
        grey = np.rint(values * (255 / DARKEST)).astype(np.uint8).reshape(-1, 8, 8, 1)
        ids = tuple(f"{row:04d}" for row in range(len(labels)))
        pool = ImageSet(ids, labels.astype(np.int64), ArrayPixels(np.repeat(grey, 3, axis=3)))
        dataset = split_by_rows(tuple("0123456789"), pool, hold_out(pool.labels, pool.ids, HELD_OUT))
        if dataset.sha256 != SHA256:
            raise UsageError(
                f"scikit-learn's digits have sha256 {dataset.sha256} here, not {SHA256}: the file was "
                "changed, or this version of scikit-learn has another one; install scikit-learn again"
            )
        return dataset
