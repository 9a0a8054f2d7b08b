"""Checkpoints on disk: loading returns what was saved, or an error in a sentence."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from bench.cell import checkpoint
from bench.cell.checkpoint import Checkpoint, DamagedError
from bench.storage import StorageError, remove_partial_files

TENSORS = {"a": torch.arange(6.0).view(2, 3).t(), "empty": torch.zeros(0, 4), "ids": torch.tensor([3, 1])}
NOTES = {"floats": [0.1, 1e-300], "nested": {"none": None, "text": "\u2260"}}


def save(cell: Path, experiences: int, **notes: object) -> Path:
    return checkpoint.save(Checkpoint(TENSORS, NOTES | notes), cell, experiences)


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    loaded = checkpoint.load(save(tmp_path, 10))
    assert loaded.notes == NOTES
    assert loaded.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_checkpoints_are_listed_in_their_order_and_replaced_by_newer_ones(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 9, first=True)
    newer = save(tmp_path, 9)
    assert list(checkpoint.list_checkpoints(tmp_path)) == [9, 10]
    assert checkpoint.list_checkpoints(tmp_path)[9] == newer
    assert len(list((tmp_path / checkpoint.FOLDER).iterdir())) == 2
    checkpoint.prune(tmp_path, (1, 10))
    assert list(checkpoint.list_checkpoints(tmp_path)) == [10]
    checkpoint.delete_all(tmp_path)
    assert checkpoint.list_checkpoints(tmp_path) == {}


DAMAGES = {
    "cut short": lambda content: content[:-7],
    "emptied": lambda content: b"",
    "one bit changed": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "lengthened": lambda content: content + b"\0",
    "notes changed": lambda content: content.replace(b"1e-300", b"1e-301"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_that_was_changed_is_refused(damage, tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    with pytest.raises(DamagedError, match="does not have the hash in its name"):
        checkpoint.load(path)
    checkpoint.quarantine(path)
    assert checkpoint.list_checkpoints(tmp_path) == {}
    assert [other.read_bytes() for other in (tmp_path / checkpoint.FOLDER).iterdir()] == [damage(content)]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 10)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.storage.os.fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*the same command goes on"):
        save(tmp_path, 11)
    assert [other for other in tmp_path.rglob("*") if other.is_file()] == [path]
    assert checkpoint.load(path).notes == NOTES


UNWRITABLE = {
    "an earlier checkpoint": lambda cell: save(cell, 3, newer=True),
    "superfluous checkpoints": lambda cell: checkpoint.prune(cell, ()),
    "a damaged checkpoint": lambda cell: checkpoint.quarantine(checkpoint.list_checkpoints(cell)[3]),
    "a partial file": lambda cell: remove_partial_files(cell),
}


@pytest.mark.parametrize("change", UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_folder_that_has_become_read_only_is_reported_in_a_sentence(
    change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 3)
    (tmp_path / ".record.json.123").touch()

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "unlink", refuse)
        read_only.setattr(Path, "replace", refuse)
        with pytest.raises(StorageError, match="Read-only file system"):
            change(tmp_path)
    assert checkpoint.load(path).notes == NOTES


def test_a_results_folder_that_disappeared_is_not_made_again(tmp_path: Path) -> None:
    gone = tmp_path / "results"
    with pytest.raises(StorageError, match="was the results folder removed"):
        save(gone / "cell", 1)
    assert not gone.exists()


def test_only_partial_files_of_writers_that_were_killed_are_removed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    others = [path.with_name(name) for name in (".hidden", ".hidden.txt", "x.12", path.name + ".damaged")]
    partial = [path.with_name(f".{path.name}.123"), path.with_name(".record.json.4567")]
    for other in itertools.chain(others, partial):
        other.write_text(json.dumps("half"))
    remove_partial_files(path.parent)
    assert sorted(path.parent.iterdir()) == sorted([path, *others])
