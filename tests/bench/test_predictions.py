from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from bench.predictions import (
    Predictions,
    PredictionsError,
    PredictionsFile,
    class_dtype,
    describe_file,
    read,
    to_bytes,
)

MARK = np.iinfo(np.uint16).max
PREDICTIONS = Predictions(
    rows=np.array([3, 5, 8], np.int32),
    true=np.array([7, 2, 7], np.uint16),
    predicted=np.array([[7, MARK, 7], [7, 7, 2]], np.uint16),
)


@pytest.fixture
def stored(tmp_path: Path) -> PredictionsFile:
    content = to_bytes(PREDICTIONS)
    entry = describe_file(content)
    (tmp_path / entry.file).write_bytes(content)
    return entry


def test_what_is_written_is_what_is_read(stored: PredictionsFile, tmp_path: Path) -> None:
    loaded = read(stored, tmp_path)
    for name in ("rows", "true", "predicted"):
        expected = getattr(PREDICTIONS, name)
        np.testing.assert_array_equal(getattr(loaded, name), expected)
        assert getattr(loaded, name).dtype == expected.dtype
    assert loaded.not_evaluated == MARK
    assert ((loaded.predicted == loaded.true).sum(1) == [2, 1]).all()


def test_the_name_changes_with_the_content() -> None:
    other = replace(PREDICTIONS, true=np.array([7, 7, 7], np.uint16))
    assert describe_file(to_bytes(other)).file != describe_file(to_bytes(PREDICTIONS)).file
    assert describe_file(to_bytes(PREDICTIONS)) == describe_file(to_bytes(replace(PREDICTIONS)))


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint16), (65535, np.uint16), (65536, np.int32)])
def test_the_type_holds_every_class_and_the_mark(classes: int, dtype: type) -> None:
    assert class_dtype(classes) is dtype
    assert np.iinfo(dtype).max > classes - 1


def test_a_test_set_of_cifar_100_takes_a_few_hundred_kilobytes() -> None:
    n, tasks = 10_000, 10
    whole = Predictions(np.arange(n, dtype=np.int32), np.zeros(n, np.uint16), np.zeros((tasks, n), np.uint16))
    assert len(to_bytes(whole)) < 300_000


def test_a_record_without_predictions_says_so(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match=r"has no predictions.*--rerun all"):
        read(None, tmp_path)


def test_a_missing_file_is_named_and_the_numbers_stand(stored: PredictionsFile, tmp_path: Path) -> None:
    (tmp_path / stored.file).unlink()
    with pytest.raises(PredictionsError, match=r"cannot be read.*accuracies are not affected") as caught:
        read(stored, tmp_path)
    assert str(tmp_path / stored.file) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 40, -1], ids="{} bytes".format)
def test_a_truncated_file_is_refused(stored: PredictionsFile, tmp_path: Path, kept: int) -> None:
    path = tmp_path / stored.file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PredictionsError, match="truncated or is not the file that the record names"):
        read(stored, tmp_path)


def test_another_cells_file_is_refused(stored: PredictionsFile, tmp_path: Path) -> None:
    other = replace(PREDICTIONS, true=np.array([7, 7, 7], np.uint16))
    (tmp_path / stored.file).write_bytes(to_bytes(other))
    with pytest.raises(PredictionsError, match="not the file that the record names"):
        read(stored, tmp_path)


FOREIGN = {
    "no safetensors": b"what is this",
    "other tensors": save({"rows": PREDICTIONS.rows}),
    "a tensor too many": save({"rows": PREDICTIONS.rows, "true": PREDICTIONS.true, "odd": PREDICTIONS.true}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_with_the_right_hash_that_holds_something_else_is_refused(
    content: bytes, tmp_path: Path
) -> None:
    entry = describe_file(content)
    (tmp_path / entry.file).write_bytes(content)
    with pytest.raises(PredictionsError, match="does not hold predictions"):
        read(entry, tmp_path)


def test_predictions_of_other_images_are_refused(tmp_path: Path) -> None:
    content = to_bytes(replace(PREDICTIONS, rows=np.array([3, 5], np.int32)))
    entry = describe_file(content)
    assert entry.sha256 == hashlib.sha256(content).hexdigest()
    (tmp_path / entry.file).write_bytes(content)
    with pytest.raises(PredictionsError, match=r"shape \(2, 3\) for 2 images"):
        read(entry, tmp_path)
