"""The cache of the frozen backbone's features: what was kept equals what is computed, whatever happens."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cell import features
from bench.cell.batches import Pipeline, clean, flipped
from bench.cell.features import Conditions, Features
from bench.cell.progress import Message, Notice, ignore
from methods.vit import embed
from tests.conftest import tiny_vit

PIPELINE = Pipeline(16, 0.875, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), torch.device("cpu"))
CONDITIONS = Conditions({"weights": "a"}, {"size": 16}, "fp32", {"threads": "1"}, {"code": "0", "torch": "2"})


def pixels(n: int = 70, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (n, 18, 18, 3), dtype=np.uint8)


def prepare(folder: Path, model: Any, images: Any, observe: Callable[[Message], None] = ignore) -> Features:
    wanted = [("train", False), ("train", True)]
    return features.prepare(wanted, {"train": images}, lambda: model, PIPELINE, CONDITIONS, folder, observe)


@pytest.fixture
def model() -> Any:
    return tiny_vit().eval()


def test_features_are_those_of_the_training_batches_of_a_loader(tmp_path: Path, model: Any) -> None:
    """Rounding aside: a loader makes other batches than the cache does."""
    images = pixels()
    kept = prepare(tmp_path, model, images)
    items = [(torch.from_numpy(image), 0, row) for row, image in enumerate(images)]
    rng = torch.Generator().manual_seed(3)
    mirrored = torch.rand(len(images), generator=torch.Generator().manual_seed(3)) < 0.5
    assert mirrored.any()
    assert not mirrored.all()
    x, _, rows, flags = flipped(PIPELINE, rng)(items)
    assert torch.equal(flags, mirrored)
    with torch.no_grad():
        expected = embed(model, x)
    torch.testing.assert_close(kept.of("train", rows, mirrored), expected, atol=1e-6, rtol=1e-5)
    x, _, rows, flags = clean(PIPELINE)(items)
    assert not flags.any()
    with torch.no_grad():
        expected = embed(model, x)
    torch.testing.assert_close(kept.of("train", rows, flags), expected, atol=1e-6, rtol=1e-5)


def test_features_that_were_read_equal_those_that_were_computed_bit_for_bit(
    tmp_path: Path, model: Any
) -> None:
    images = pixels()
    cold, warm = prepare(tmp_path / "a", model, images), prepare(tmp_path / "a", model, images)
    elsewhere = prepare(tmp_path / "b", model, images)
    assert (cold.passes, warm.passes, elsewhere.passes) == (140, 0, 140)
    for key, tensor in cold.tensors.items():
        assert torch.equal(tensor, warm.tensors[key])
        assert torch.equal(tensor, elsewhere.tensors[key])


def test_rows_select_images_and_their_mirror_images(tmp_path: Path, model: Any) -> None:
    kept = prepare(tmp_path, model, pixels())
    rows, mirrored = torch.tensor([5, 2, 5]), torch.tensor([False, True, True])
    plain, mirror = kept.tensors["train", False], kept.tensors["train", True]
    features = kept.of("train", rows, mirrored)
    assert features is not None
    assert not torch.equal(plain, mirror)
    assert torch.equal(features, torch.stack([plain[5], mirror[2], mirror[5]]))


def test_images_that_are_not_kept_are_no_features(tmp_path: Path, model: Any) -> None:
    wanted = [("test", False)]
    kept = features.prepare(wanted, {"test": pixels()}, lambda: model, PIPELINE, CONDITIONS, tmp_path, ignore)
    rows = torch.tensor([0, 1])
    assert kept.of("train", rows, torch.tensor([False, False])) is None
    assert kept.of("test", rows, torch.tensor([False, True])) is None
    assert kept.of("test", rows, torch.tensor([False, False])) is not None


CHANGES: dict[str, Callable[[Conditions], Conditions]] = {
    "model": lambda c: replace(c, model={"weights": "b"}),
    "inputs": lambda c: replace(c, inputs={"size": 32}),
    "precision": lambda c: replace(c, precision="bf16"),
    "machine": lambda c: replace(c, machine={"threads": "2"}),
    "code": lambda c: replace(c, code={"code": "1", "torch": "2"}),
    "versions": lambda c: replace(c, code={"code": "0", "torch": "3"}),
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_condition_is_another_file(part: str) -> None:
    images = pixels(4)
    changed = features.file_key(images, False, CHANGES[part](CONDITIONS))
    assert changed != features.file_key(images, False, CONDITIONS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(0, 17), st.integers(0, 17), st.integers(0, 2), st.integers(1, 255))
def test_any_changed_pixel_is_another_file(image: int, row: int, column: int, channel: int, by: int) -> None:
    before = pixels(4)
    after = before.copy()
    after[image, row, column, channel] ^= np.uint8(by)
    key = features.file_key(before, False, CONDITIONS)
    assert features.file_key(after, False, CONDITIONS) != key
    assert features.file_key(before.copy(), False, CONDITIONS) == key
    assert features.file_key(before, True, CONDITIONS) != key


def test_another_order_or_shape_of_the_same_pixels_is_another_file() -> None:
    images = pixels(4)
    key = features.file_key(images, False, CONDITIONS)
    assert features.file_key(images[::-1].copy(), False, CONDITIONS) != key
    assert features.file_key(images.reshape(4, 9, 36, 3), False, CONDITIONS) != key


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_damage_is_noticed_and_the_features_are_computed_again(data: st.DataObject) -> None:
    with_damage = data.draw(st.sampled_from(["flip", "truncate", "empty"]))
    messages: list[Message] = []
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        truth = torch.arange(12.0).view(3, 4)
        features.write(path, truth)
        content = bytearray(path.read_bytes())
        where = data.draw(st.integers(0, len(content) - 1))
        if with_damage == "flip":
            content[where] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(content[: {"flip": None, "truncate": where, "empty": 0}[with_damage]]))
        read, _ = features.read_or_compute(path, lambda: truth, messages.append)
        assert torch.equal(read, truth)
        again, computed = features.read_or_compute(path, lambda: -truth, messages.append)
        assert torch.equal(again, truth)
        assert not computed


def test_a_full_disk_costs_the_cache_and_not_the_run(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    expected = prepare(tmp_path / "a", model, pixels())
    monkeypatch.setattr(features, "write_whole", full)
    messages: list[Message] = []
    got = prepare(tmp_path / "b", model, pixels(), messages.append)
    assert torch.equal(got.tensors["train", True], expected.tensors["train", True])
    notices = [message.text for message in messages if isinstance(message, Notice)]
    assert len(notices) == 2
    assert "No space left" in notices[0]
    assert not list((tmp_path / "b").glob("*.safetensors"))


def test_a_folder_that_cannot_exist_costs_the_cache_and_not_the_run(tmp_path: Path, model: Any) -> None:
    (tmp_path / "file").write_text("not a folder")
    got = prepare(tmp_path / "file" / "features", model, pixels())
    assert torch.equal(
        got.tensors["train", False], prepare(tmp_path, model, pixels()).tensors["train", False]
    )


def _count_computations(folder: Path, start: Any, counts: Any) -> None:
    start.wait()

    def compute() -> torch.Tensor:
        with counts.get_lock():
            counts.value += 1
        return torch.ones(2000, 64)

    features.read_or_compute(folder / "x.safetensors", compute, ignore)


def test_of_processes_that_need_the_same_features_one_computes_them(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, counts = context.Event(), context.Value("i", 0)
    workers = [context.Process(target=_count_computations, args=(tmp_path, start, counts)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert counts.value == 1


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path: Path) -> None:
    (tmp_path / f"{features.DRAFT}0").write_bytes(b"half")
    path = tmp_path / "a.safetensors"
    features.write(path, torch.zeros(3))
    assert list(tmp_path.iterdir()) == [path]


def test_the_files_used_longest_ago_go_first(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for age, path in zip((30, 20, 10), paths, strict=True):
        features.write(path, torch.zeros(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    assert features.read(paths[0], ignore) is not None  # now the last one used
    features.evict(tmp_path, 2 * paths[0].stat().st_size, keep=paths[2])
    assert [path.exists() for path in paths] == [True, False, True]


def test_the_file_just_written_stays_even_if_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    features.write(path, torch.zeros(100))
    features.evict(tmp_path, 1, keep=path)
    assert path.exists()
    assert list(tmp_path.iterdir()) == [path]
