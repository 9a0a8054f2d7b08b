"""What a writer leaves behind that was killed is deleted; what another is still writing is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.benchmarks import download
from bench.benchmarks.drafts import draft_file, draft_folder, sweep
from bench.benchmarks.pixels import DRAFT, FilePixels
from tests.bench.benchmarks.conftest import Folder

WRITER = """
import sys
from pathlib import Path
from bench.benchmarks.drafts import draft_file, draft_folder
make = draft_folder if sys.argv[1] == "folder" else draft_file
with make(Path(sys.argv[2]), sys.argv[3]) as draft:
    (draft / "content" if draft.is_dir() else draft).write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer(kind: str, folder: Path, prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of a draft."""
    command = [sys.executable, "-c", WRITER, kind, str(folder), prefix]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_draft_of_a_killed_writer_is_swept_and_that_of_a_living_one_stays(
    kind: str, tmp_path: Path
) -> None:
    with writer(kind, tmp_path, ".x-") as process:
        (draft,) = tmp_path.iterdir()
        sweep(tmp_path, ".x-")
        assert list(tmp_path.iterdir()) == [draft]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(tmp_path.iterdir()) == [draft]
        sweep(tmp_path, ".x-")
        assert list(tmp_path.iterdir()) == []


def test_what_has_another_name_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / ".xy").touch()
    sweep(tmp_path, ".x-")
    assert (tmp_path / ".xy").exists()


def test_a_draft_is_deleted_unless_it_was_renamed(tmp_path: Path) -> None:
    with draft_file(tmp_path, ".x-") as draft:
        draft.replace(tmp_path / "kept")
    with draft_file(tmp_path, ".x-") as draft:
        draft.write_bytes(b"not wanted")
    with draft_folder(tmp_path, ".x-") as draft:
        (draft / "content").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_decoding_sweeps_what_a_kill_has_left(tmp_path: Path, class_folders: Folder) -> None:
    folder = class_folders(tmp_path / "pets", {"ant": 2})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{DRAFT}0123.npy").write_bytes(bytes(1000))  # by an older version, too
    with writer("file", tmp_path / "cache", DRAFT) as process:
        process.kill()
        process.wait()
        FilePixels(tuple(sorted(folder.rglob("*.png"))), tmp_path / "cache").decode(8)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_unpacking_sweeps_what_a_kill_has_left(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"content")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data", "data")
    root = tmp_path / "root"
    root.mkdir()
    with writer("folder", root, download.DRAFT) as process:
        process.kill()
        process.wait()
        download.extract(tmp_path / "data.tar", root / "data")
    assert [path.name for path in root.iterdir()] == ["data"]
