"""Archives: find in a data root or download, verify, unpack; an interrupted download is resumed."""

from __future__ import annotations

import hashlib
import http.client
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.benchmarks.drafts import draft_folder, sweep
from methods.errors import MissingError, UsageError

TIMEOUT = 5.0  # seconds without an answer or without a byte
BLOCK = 1 << 20
DRAFT = ".unpacking-"  # how the name of the folder begins into which an archive is unpacked


@dataclass(frozen=True)
class Archive:
    """A published tar file.

    Attributes:
        what: the data set's name, for messages.
        md5: published checksum of the file, in hexadecimal.
        folder: the top-level folder it holds.
    """

    what: str
    url: str
    md5: str
    folder: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def find_folder(archive: Archive, roots: Sequence[Path]) -> Path | None:
    """The unpacked folder in the first root that has it, else the archive file, else None."""
    folders = (root / archive.folder for root in roots)
    files = (root / archive.file for root in roots)
    existing = (path for path in folders if path.is_dir())
    return next(existing, next((path for path in files if path.is_file()), None))


def obtain(archive: Archive, roots: Sequence[Path]) -> Path:
    """The unpacked folder; if there is none, the archive is searched for in the roots or downloaded.

    The archive is downloaded to the first root, and unpacked there.

    Raises:
        MissingError: if it is not here and cannot be downloaded; says where it was searched for.
        UsageError: if the archive is not the published one, or cannot be unpacked.
    """
    path = find_folder(archive, roots)
    if path is not None and path.is_dir():
        return path
    if path is not None:
        _verify(path, archive.md5)
    else:
        path = _download(archive, roots)
    folder = roots[0] / archive.folder
    extract(path, folder)
    return folder


def _download(archive: Archive, roots: Sequence[Path]) -> Path:
    try:
        return fetch(archive.url, roots[0] / archive.file, archive.md5)
    except MissingError as error:
        raise MissingError(
            f"{archive.what} is not here: looked for {archive.folder}/ and {archive.file} in "
            f"{', '.join(map(str, roots))}. {error}"
        ) from error


def fetch(url: str, dest: Path, md5: str) -> Path:
    """Download `url` to `dest`; an interrupted transfer is resumed from `<dest>.part`.

    Raises:
        MissingError: if the connection fails; says how to put the file there by hand.
        UsageError: if the file has another checksum (it is removed), or cannot be written.
    """
    part = dest.with_name(dest.name + ".part")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise UsageError(f"{part} cannot be written ({error.strerror}); give another --data-root") from error
    try:
        _transfer(url, part)
    except (OSError, http.client.HTTPException) as error:
        raise MissingError(
            f"Downloading {url} failed ({getattr(error, 'reason', error)}). With a network, run this again: "
            f"it resumes. Without, download it elsewhere (md5 {md5}) and put it here: {dest}"
        ) from error
    finally:
        if part.stat().st_size == 0:
            part.unlink()
    _verify(part, md5, remove=True)
    return part.replace(dest)


def _transfer(url: str, part: Path) -> None:
    """Append the missing bytes of `url` to `part`; OSError or HTTPException if it stays incomplete."""
    size = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the file is complete
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            size = 0
        length = response.headers.get("Content-Length")
        total = size + int(length) if length else None
        with part.open("ab" if size else "wb") as file:
            for block in _with_progress(_blocks(response), part.stem, size, total):
                file.write(block)
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection broke off after {part.stat().st_size:,} of {total:,} bytes")


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        yield block


def _with_progress(blocks: Iterator[bytes], name: str, size: int, total: int | None) -> Iterator[bytes]:
    """The blocks; on a terminal with a progress bar, which starts at `size` bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task(f"downloading {name}", completed=size, total=total)
        for block in blocks:
            yield block
            progress.advance(bar, len(block))


def md5_of(path: Path) -> str:
    """md5 of a file in hexadecimal: the checksum that is published with the archives."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _verify(path: Path, md5: str, *, remove: bool = False) -> None:
    if (actual := md5_of(path)) == md5:
        return
    if remove:
        path.unlink()
    advice = "it was removed, run this again" if remove else "remove it and it is downloaded again"
    raise UsageError(f"{path} has md5 {actual} instead of {md5}: it is damaged or another file; {advice}")


def extract(archive: Path, dest: Path) -> None:
    """Unpack a tar file whose top-level folder has the name of `dest`; `dest` appears once it is complete.

    Raises:
        UsageError: for a member outside the folder, a damaged file, another top-level folder, a full disk.
    """
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        sweep(dest.parent, DRAFT)
        with draft_folder(dest.parent, DRAFT) as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            unpacked = temporary / dest.name
            if not unpacked.is_dir():
                raise UsageError(f"{archive} holds no folder '{dest.name}'; it is another archive, remove it")
            unpacked.rename(dest)
    except tarfile.FilterError as error:
        raise UsageError(
            f"{archive} is refused, a member would leave its folder: {error}; remove it"
        ) from error
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{archive} cannot be unpacked into {dest.parent}: {error}") from error
