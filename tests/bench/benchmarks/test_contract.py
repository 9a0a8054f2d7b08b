"""What every benchmark keeps in each scenario that it offers, and what loading makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.benchmarks import BENCHMARKS
from bench.benchmarks.base import NO_DOMAIN, Benchmark, Dataset, ImageSet
from bench.benchmarks.domainnet import ORDERS
from bench.benchmarks.loading import Arrays, load_arrays
from bench.benchmarks.splits import STREAMS, Split, class_order, make_split, strata_of
from bench.spec import Scenario
from tests.bench.benchmarks.conftest import ClosedPixels, with_lists


@dataclasses.dataclass(frozen=True)
class Opened:
    """A benchmark with its data, in one of its scenarios."""

    benchmark: Benchmark[Any]
    roots: tuple[Path, ...]
    scenario: Scenario

    def dataset(self) -> Dataset:
        return self.benchmark.open(self.roots)

    def tasks(self) -> int:
        if self.scenario == "domain-incremental":
            return self.benchmark.count_domains(self.roots)
        return self.benchmark.default_tasks

    def split(self, dataset: Dataset | None = None, **changed: Any) -> Split:
        arguments = {"tasks": self.tasks(), "seed": 1, "eval_on": "test"} | changed
        dataset = dataset or self.dataset()
        names = dataset.domains if self.scenario == "domain-incremental" else dataset.classes
        order = class_order(len(names), arguments["seed"])
        stream = STREAMS[self.scenario](dataset, order, arguments["tasks"])
        scale = self.benchmark.scales["smoke"]
        return make_split(dataset, stream, scale=scale, eval_on=arguments["eval_on"])

    def loaded(self, split: Split, image_size: int = 16) -> Arrays:
        return load_arrays(self.dataset(), split, image_size, self.benchmark.eval_crop)


#: Twelve classes of eight images.
EIGHT = {f"class {number:02d}": 8 for number in range(12)}
#: Ten objects with three frames in each session.
OBJECTS = {f"o{number}": 3 for number in range(1, 11)}


def offered(*scenarios: Scenario) -> Any:
    """The benchmarks with each of these scenarios that they offer."""
    cases = [(name, it) for name in sorted(BENCHMARKS) for it in BENCHMARKS[name].load().scenarios]
    wanted = [case for case in cases if case[1] in scenarios]
    return {"argvalues": wanted, "ids": ["-".join(case) for case in wanted]}


def in_scenarios(*scenarios: Scenario) -> Any:
    return pytest.mark.parametrize("opened", **offered(*scenarios), indirect=True)


in_all = in_scenarios("class-incremental", "domain-incremental")


@pytest.fixture
def opened(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    class_folders: Callable[..., Path],
    domain_folders: Callable[..., Path],
    core50_folder: Callable[..., Path],
    cifar_root: Path,
) -> Opened:
    """A benchmark on data that the test made, or that the project carries."""

    def pets() -> Path:
        return class_folders(tmp_path / "pets", EIGHT)

    def domainnet() -> Path:
        return with_lists(domain_folders(tmp_path / "domainnet", ORDERS["name"], EIGHT))

    options: dict[str, Callable[[], dict[str, Any]]] = {
        "digits": dict,
        "digits-domains": dict,
        "domain-folder": lambda: {"path": domain_folders(tmp_path / "styles", ["drawn", "seen"], EIGHT)},
        "domainnet": lambda: {"path": domainnet(), "allow_subset": True, "order": "ranpac"},
        "core50": lambda: {"path": core50_folder(tmp_path / "core50", OBJECTS), "allow_subset": True},
        "cifar100": dict,
        "image-folder": lambda: {"path": pets()},
        "imagenet-r": lambda: {"path": pets(), "allow_subset": True},
    }
    name, scenario = request.param
    cls = BENCHMARKS[name].load()
    return Opened(cls(cls.Options(**options[name]())), (cifar_root,), scenario)


# ---- every stream ----------------------------------------------------------------------------------------


@in_all
def test_its_data_are_located(opened: Opened) -> None:
    path = opened.benchmark.locate(opened.roots)
    assert path is not None
    assert path.exists()


@in_all
def test_its_attributes_are_legal(opened: Opened) -> None:
    benchmark = opened.benchmark
    assert set(benchmark.scales) == {"smoke", "quick", "full"}
    assert 1 <= benchmark.default_tasks <= len(opened.dataset().classes)
    assert benchmark.image_size > 0
    assert 0 < benchmark.eval_crop <= 1
    assert benchmark.augmentation in {"none", "flip", "crop-flip"}
    assert BENCHMARKS[benchmark.name].target.endswith(type(benchmark).__name__)


@in_all
def test_it_opens_to_the_same_content_twice(opened: Opened) -> None:
    assert opened.dataset().sha256 == opened.dataset().sha256
    assert opened.split().sha256 == opened.split().sha256


@in_all
def test_its_training_and_test_images_are_disjoint_and_labelled(opened: Opened) -> None:
    dataset = opened.dataset()
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    for images in (dataset.train, dataset.test):
        assert images.labels.dtype == np.int64
        assert set(images.labels.tolist()) == set(range(len(dataset.classes)))


@in_all
def test_smoke_is_small_and_balanced(opened: Opened) -> None:
    dataset, split, smoke = opened.dataset(), opened.split(), opened.benchmark.scales["smoke"]
    assert np.bincount(strata_of(dataset.train)[split.train_rows]).max() == smoke.train_per_class
    assert np.bincount(strata_of(dataset.test)[split.test_rows]).max() <= (smoke.test_per_class or 0)


@in_all
def test_arrays_agree_with_the_data_set(opened: Opened) -> None:
    dataset, split = opened.dataset(), opened.split()
    arrays = opened.loaded(split)
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


@in_all
def test_images_are_stored_for_the_crop_and_never_enlarged(opened: Opened) -> None:
    split = opened.split()
    native = opened.dataset().train.pixels.native_size
    for image_size in (4, 16, 56):
        target = round(image_size / opened.benchmark.eval_crop)
        size = opened.loaded(split, image_size).train_x.shape[1]
        assert size == (target if native is None else min(native, target))


@in_all
def test_validation_decodes_no_test_image(opened: Opened) -> None:
    dataset = opened.dataset()
    closed = dataclasses.replace(
        dataset, test=dataclasses.replace(dataset.test, pixels=ClosedPixels(len(dataset.test)))
    )
    split = opened.split(closed, eval_on="validation")
    arrays = load_arrays(closed, split, 8, opened.benchmark.eval_crop)
    assert not set(split.train_rows) & set(split.test_rows)
    assert len(arrays.test_x) == len(split.test_rows) > 0


# ---- streams of classes ----------------------------------------------------------------------------------


@in_scenarios("class-incremental")
def test_tasks_are_contiguous_labels(opened: Opened) -> None:
    """The labels of a task are a range, and stand for the classes at these positions of the class order."""
    split = opened.split(tasks=3)
    labels = opened.loaded(split).train_y
    classes = opened.dataset().train.labels[split.train_rows]
    ends = np.cumsum(split.task_sizes).tolist()
    assert set(labels.tolist()) == set(range(ends[-1]))
    for start, end in zip([0, *ends], ends, strict=False):
        in_task = (labels >= start) & (labels < end)
        assert set(classes[in_task].tolist()) == set(split.class_order[start:end])


# ---- streams of domains ----------------------------------------------------------------------------------


@in_scenarios("domain-incremental")
def test_a_domain_is_an_experience_with_all_classes(opened: Opened) -> None:
    dataset, split = opened.dataset(), opened.split()
    assert opened.benchmark.count_domains(opened.roots) == len(dataset.domains) > 1
    labels = opened.loaded(split).train_y
    for experience in range(len(dataset.domains)):
        in_experience = set(labels[split.train_experience == experience].tolist())
        assert in_experience == set(range(len(dataset.classes)))
    assert split.class_order == tuple(range(len(dataset.classes)))


@in_scenarios("domain-incremental")
@pytest.mark.parametrize("eval_on", ["test", "validation"])
def test_the_images_of_a_domain_are_in_its_experience(opened: Opened, eval_on: str) -> None:
    """The names of images begin with those of their domains."""
    dataset, split = opened.dataset(), opened.split(eval_on=eval_on)
    tested = dataset.test if eval_on == "test" else dataset.train
    assert sorted(split.domain_order) == list(range(len(dataset.domains)))
    check_experiences(dataset, split, dataset.train.take(split.train_rows), split.train_experience)
    check_experiences(dataset, split, tested.take(split.test_rows), split.test_experience)


def check_experiences(dataset: Dataset, split: Split, images: ImageSet, experience: np.ndarray) -> None:
    for name, number in zip(images.ids, experience.tolist(), strict=True):
        domain = name.partition("/")[0]
        if number == NO_DOMAIN:
            assert domain not in dataset.domains
        else:
            assert domain == dataset.domains[split.domain_order[number]]


@in_scenarios("domain-incremental")
def test_validation_holds_out_of_every_class_and_domain(opened: Opened) -> None:
    dataset, split = opened.dataset(), opened.split(eval_on="validation")
    strata = strata_of(dataset.train)
    assert set(strata[split.test_rows]) == set(strata[split.train_rows]) == set(strata)


# ---- one of them -----------------------------------------------------------------------------------------


def test_digits_are_scaled_exactly() -> None:
    cls = BENCHMARKS["digits"].load()
    dataset = cls(cls.Options()).open([])
    images = dataset.train.decode(8)
    assert len(dataset.train) + len(dataset.test) == 1797
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17
    assert np.array_equal(images[..., 0], images[..., 2])
