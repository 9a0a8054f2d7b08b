"""What every benchmark keeps, and what loading makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.benchmarks import BENCHMARKS
from bench.benchmarks.base import Benchmark
from bench.benchmarks.loading import Arrays, load_arrays
from bench.benchmarks.splits import Split
from tests.bench.benchmarks.conftest import ClosedPixels, class_split

Opened = tuple[Benchmark[Any], tuple[Path, ...]]


@pytest.fixture(params=sorted(BENCHMARKS))
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, class_folders: Callable[..., Path], cifar_root: Path
) -> Opened:
    """Each benchmark on data that the test made, or that the project carries."""
    folder = class_folders(tmp_path / "pets", {f"class {number:02d}": 8 for number in range(12)})
    options: dict[str, dict[str, Any]] = {
        "digits": {},
        "cifar100": {},
        "image-folder": {"path": folder},
        "imagenet-r": {"path": folder, "allow_subset": True},
    }
    cls = BENCHMARKS[request.param].load()
    return cls(cls.Options(**options[request.param])), (cifar_root,)


def split_of(opened: Opened, **changed: Any) -> Split:
    benchmark, roots = opened
    arguments = {"tasks": benchmark.default_tasks, "seed": 1, "eval_on": "test"} | changed
    return class_split(benchmark.open(roots), scale=benchmark.scales["smoke"], **arguments)


def loaded(opened: Opened, split: Split, image_size: int = 16) -> Arrays:
    benchmark, roots = opened
    return load_arrays(benchmark.open(roots), split, image_size, benchmark.eval_crop)


def test_its_data_are_located(opened: Opened) -> None:
    benchmark, roots = opened
    path = benchmark.locate(roots)
    assert path is not None
    assert path.exists()


def test_its_attributes_are_legal(opened: Opened) -> None:
    benchmark, roots = opened
    assert set(benchmark.scales) == {"smoke", "quick", "full"}
    assert 1 <= benchmark.default_tasks <= len(benchmark.open(roots).classes)
    assert benchmark.image_size > 0
    assert 0 < benchmark.eval_crop <= 1
    assert benchmark.augmentation in {"none", "flip", "crop-flip"}
    assert BENCHMARKS[benchmark.name].target.endswith(type(benchmark).__name__)


def test_it_opens_to_the_same_content_twice(opened: Opened) -> None:
    benchmark, roots = opened
    assert benchmark.open(roots).sha256 == benchmark.open(roots).sha256
    assert split_of(opened).sha256 == split_of(opened).sha256


def test_its_training_and_test_images_are_disjoint_and_labelled(opened: Opened) -> None:
    benchmark, roots = opened
    dataset = benchmark.open(roots)
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    for images in (dataset.train, dataset.test):
        assert images.labels.dtype == np.int64
        assert set(images.labels.tolist()) == set(range(len(dataset.classes)))


def test_smoke_is_small_and_balanced(opened: Opened) -> None:
    benchmark, roots = opened
    dataset, split = benchmark.open(roots), split_of(opened)
    smoke = benchmark.scales["smoke"]
    assert np.bincount(dataset.train.labels[split.train_rows]).max() == smoke.train_per_class
    assert np.bincount(dataset.test.labels[split.test_rows]).max() <= (smoke.test_per_class or 0)


def test_arrays_agree_with_the_data_set(opened: Opened) -> None:
    benchmark, roots = opened
    dataset, split = benchmark.open(roots), split_of(opened)
    arrays = loaded(opened, split)
    assert len(arrays.train_x) == len(arrays.train_y) == len(split.train_rows)
    assert len(arrays.test_x) == len(arrays.test_y) == len(split.test_rows)
    assert (arrays.train_x.dtype, arrays.train_y.dtype) == (np.uint8, np.int64)
    assert arrays.train_x.shape[1:] == arrays.test_x.shape[1:]
    order = np.array(split.class_order)
    assert np.array_equal(order[arrays.train_y], dataset.train.labels[split.train_rows])
    assert np.array_equal(order[arrays.test_y], dataset.test.labels[split.test_rows])
    size = arrays.train_x.shape[1]
    one = dataset.train.take(split.train_rows[[3]]).decode(size)[0]
    assert np.array_equal(arrays.train_x[3], one)


def test_tasks_are_contiguous_labels(opened: Opened) -> None:
    """The labels of a task are a range, and stand for the classes at these positions of the class order."""
    (benchmark, roots), split = opened, split_of(opened, tasks=3)
    labels = loaded(opened, split).train_y
    classes = benchmark.open(roots).train.labels[split.train_rows]
    ends = np.cumsum(split.task_sizes).tolist()
    assert set(labels.tolist()) == set(range(ends[-1]))
    for start, end in zip([0, *ends], ends, strict=False):
        in_task = (labels >= start) & (labels < end)
        assert set(classes[in_task].tolist()) == set(split.class_order[start:end])


def test_images_are_stored_for_the_crop_and_never_enlarged(opened: Opened) -> None:
    benchmark, roots = opened
    split = split_of(opened)
    native = benchmark.open(roots).train.pixels.native_size
    for image_size in (4, 16, 56):
        target = round(image_size / benchmark.eval_crop)
        size = loaded(opened, split, image_size).train_x.shape[1]
        assert size == (target if native is None else min(native, target))


def test_validation_decodes_no_test_image(opened: Opened) -> None:
    benchmark, roots = opened
    dataset = benchmark.open(roots)
    closed = dataclasses.replace(
        dataset, test=dataclasses.replace(dataset.test, pixels=ClosedPixels(len(dataset.test)))
    )
    split = class_split(closed, tasks=2, seed=0, scale=benchmark.scales["smoke"], eval_on="validation")
    arrays = load_arrays(closed, split, 8, benchmark.eval_crop)
    assert not set(split.train_rows) & set(split.test_rows)
    assert len(arrays.test_x) == len(split.test_rows) > 0


def test_digits_are_scaled_exactly() -> None:
    cls = BENCHMARKS["digits"].load()
    dataset = cls(cls.Options()).open([])
    images = dataset.train.decode(8)
    assert len(dataset.train) + len(dataset.test) == 1797
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17
    assert np.array_equal(images[..., 0], images[..., 2])
