"""Inputs of cells: opened once per `Inputs`, and missing or unsuitable ones reported in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.benchmarks.base import DATA_VARIABLE
from bench.benchmarks.loading import stored_shapes
from bench.cell.backbone import MICRO_NAME
from bench.cell.inputs import Inputs, Paths, paths_from
from bench.cell.progress import ignore
from bench.cell.runner import pipeline_of, run_cell
from bench.cell.suitability import check_cells
from bench.spec import Cell, Choice, Component, settings_from
from methods.errors import MissingError, UsageError
from tests.bench.cell.conftest import CONTEXT, plan_cell


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    return plan_cell("ncm", tmp_path / "results")[0]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(roots=(tmp_path / "data",), weights="random", results=tmp_path / "results")


def other_method(cell: Cell) -> Cell:
    return cell.model_copy(update={"method": Component(name="joint", label="joint", options={})})


def with_benchmark(cell: Cell, name: str, **options: Any) -> Cell:
    return cell.model_copy(update={"benchmark": Component(name=name, label=name, options=options)})


def with_protocol(cell: Cell, **changes: Any) -> Cell:
    return cell.model_copy(update={"protocol": cell.protocol.model_copy(update=changes)})


#: geometry -> height and width of a stored training image of 10 x 15 pixels, for inputs of 64 pixels.
STORED = {"whole": (10, 15), "square": (73, 73), "squash": (73, 73)}


@pytest.mark.parametrize("geometry", STORED)
def test_images_are_stored_as_the_geometry_takes_them_and_a_cell_trains_on_them(
    geometry: str, tmp_path: Path
) -> None:
    for number in range(32):
        folder = tmp_path / "pets" / f"class {number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (15, 10), (8 * number, 5, 9)).save(folder / f"{number}.png")
    cell, inputs = plan_cell(
        "ncm",
        tmp_path / "results",
        benchmarks=(f"image-folder:path='{tmp_path / 'pets'}'",),
        data_root=tmp_path / "data",
        backbone=MICRO_NAME,
        image_size=64,
        tasks=2,
        protocol_options={"geometry": geometry},
    )
    arrays = inputs.images(cell)
    assert arrays.train_x[0].shape == (*STORED[geometry], 3)
    assert arrays.test_x.shape[1:] == (73, 73, 3)
    assert run_cell(cell, inputs.paths, CONTEXT, ignore).record.reason is None


@pytest.mark.parametrize(
    ("geometry", "augmentation", "shapes"),
    [
        ("square", "crop-flip", ("square", "square")),
        ("whole", "crop-flip", ("whole", "centred")),
        ("whole", "small-crop-flip", ("whole", "centred")),
        ("whole", "flip", ("centred", "centred")),
        ("squash", "none", ("squashed", "squashed")),
    ],
)
def test_images_are_stored_whole_only_where_crops_are_taken_from_them(
    geometry: str, augmentation: str, shapes: tuple[str, str], cell: Cell
) -> None:
    changed = with_protocol(cell, geometry=geometry, augmentation=augmentation)
    assert stored_shapes(changed.protocol) == shapes


def test_the_protocols_crop_of_a_test_image_wins_over_the_benchmarks(cell: Cell, paths: Paths) -> None:
    inputs = Inputs(paths)
    assert inputs.test_crop(cell) == 1.0
    assert inputs.test_crop(with_protocol(cell, test_crop=0.875)) == 0.875
    assert pipeline_of(with_protocol(cell, test_crop=0.5, geometry="squash"), inputs).uncropped == 64


def test_paths_are_those_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))
    values = {"methods": ("ncm",), "benchmarks": ("digits",), "weights": "random"}
    paths = paths_from(settings_from(values | {"data_root": tmp_path / "asked", "results": tmp_path / "r"}))
    assert paths.roots[:2] == (tmp_path / "asked", tmp_path / "variable")
    assert (paths.weights, paths.results) == ("random", tmp_path / "r")


def test_everything_is_opened_once_per_object(cell: Cell, paths: Paths) -> None:
    inputs = Inputs(paths)
    assert inputs.benchmark(cell) is inputs.benchmark_of(Choice(name="digits"))
    for read in (inputs.benchmark, inputs.dataset, inputs.images, inputs.backbone):
        assert read(cell) is read(cell)
        assert read(other_method(cell)) is read(cell)  # cells of all methods share their inputs


def test_objects_share_nothing(cell: Cell, paths: Paths) -> None:
    one, other = Inputs(paths), Inputs(paths)
    assert one.dataset(cell) is not other.dataset(cell)
    assert one.images(cell) is not other.images(cell)


def test_the_images_of_one_cell_are_cached_and_no_more(cell: Cell, paths: Paths) -> None:
    inputs, seed_2 = Inputs(paths), cell.model_copy(update={"seed": 2})
    first = inputs.images(cell)
    assert inputs.images(seed_2) is inputs.images(seed_2)
    again = inputs.images(cell)
    assert again is not first
    assert np.array_equal(again.train_x, first.train_x)


def test_images_follow_the_split(cell: Cell, paths: Paths) -> None:
    inputs = Inputs(paths)
    split, images = inputs.split(cell), inputs.images(cell)
    assert (split.class_order, split.task_sizes) == (cell.class_order, cell.task_sizes)
    assert split.sha256 == cell.split_sha256
    assert (len(images.train_y), len(images.test_y)) == (len(split.train_rows), len(split.test_rows))


def test_names_of_classes_are_in_the_order_learnt_and_can_be_stored(cell: Cell, paths: Paths) -> None:
    inputs = Inputs(paths)
    names = ("zero", 1, "zwei ", "d\udcffrei", "四", *map(str, range(5, 10)))
    dataset = replace(inputs.dataset(cell), classes=names)
    inputs._dataset = lambda name, options: dataset  # type: ignore[assignment]
    named = dict(zip(inputs.split(cell).class_order, inputs.class_names(cell), strict=True))
    stored = ["zero", "1", "zwei ", "d\\udcffrei", "四", "5", "6", "7", "8", "9"]
    assert [named[number] for number in range(10)] == stored
    json.dumps(stored, ensure_ascii=False).encode()


def test_a_benchmark_with_another_option_is_another_one(paths: Paths, tmp_path: Path) -> None:
    inputs = Inputs(paths)
    one, other = (
        inputs.benchmark_of(Choice(name="image-folder", options={"path": str(tmp_path / name)}))
        for name in ("a", "b")
    )
    assert one.options.path == tmp_path / "a"
    assert other.options.path == tmp_path / "b"


def test_random_weights_have_no_file(cell: Cell, paths: Paths) -> None:
    backbone = Inputs(paths).backbone(cell)
    assert (backbone.weights, backbone.sha256) == (None, "random")
    assert Inputs(replace(paths, weights=None)).backbone(cell).weights is not None


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(name="digit"), "did you mean 'digits'"),
        (Choice(name="image-folder", options={"pth": "x"}), "did you mean 'path'"),
        (Choice(name="imagenet-r", options={"allow_subset": "perhaps"}), "allow_subset"),
    ],
)
def test_a_wrong_name_or_option_is_refused(choice: Choice, words: str, paths: Paths) -> None:
    with pytest.raises(UsageError, match=words):
        Inputs(paths).benchmark_of(choice)


def test_missing_data_say_where_they_were_searched_for(cell: Cell, paths: Paths) -> None:
    inputs = Inputs(paths)
    elsewhere = with_benchmark(cell, "image-folder", path="no-such-folder")
    for read in (inputs.dataset, inputs.split, inputs.images):
        with pytest.raises(MissingError, match="there is no folder 'no-such-folder'") as caught:
            read(elsewhere)
        assert str(paths.roots[0]) in str(caught.value)
    assert inputs.benchmark(elsewhere).image_size == 224  # its settings are known without its data


def test_missing_weights_are_reported(cell: Cell, paths: Paths, tmp_path: Path) -> None:
    absent = replace(paths, weights=str(tmp_path / "absent.safetensors"))
    with pytest.raises(MissingError, match=r"absent\.safetensors' does not exist"):
        Inputs(absent).backbone(cell)


def test_an_image_size_that_does_not_suit_the_backbone_is_refused(cell: Cell, paths: Paths) -> None:
    inputs = Inputs(paths)
    check_cells([cell], inputs.build_backbone)
    with pytest.raises(UsageError, match="legal are multiples of its patch size, 4"):
        check_cells([with_protocol(cell, image_size=30)], inputs.build_backbone)


def test_weights_of_another_architecture_are_refused(cell: Cell, paths: Paths, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"no weights")
    with pytest.raises(UsageError, match="is not a readable safetensors file"):
        check_cells([cell], Inputs(replace(paths, weights=str(other))).build_backbone)
