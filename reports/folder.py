"""The folder of a report: it holds what this report wrote, and what no report ever wrote.

A list of the report's files is beside them, with their hashes, in the format of `sha256sum -c`. By it the
next report knows which files are an earlier one's, and are as that one left them: of these, it removes those
that it does not write itself. Where there is no list, a version before it wrote the folder; then files are
known by their names.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from methods.errors import UsageError

LIST_NAME = "report.sha256"
REPORT_NAME = "report.md"
FIGURES_FOLDER = "figures"
TABLES_FOLDER = "tables"
#: The first line of every report: by it a report of a version without a list is known.
TITLE = "Continual-learning benchmark"

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
#: Names that a report gives to its figures and tables: a group's stem, and a kind.
_IN_FOLDERS = re.compile(
    rf"{FIGURES_FOLDER}/[a-z0-9-]+-[0-9a-f]{{8}}-[a-z0-9-]+\.(svg|png)"
    rf"|{TABLES_FOLDER}/[a-z0-9-]+-[0-9a-f]{{8}}-[a-z0-9-]+\.(csv|tex)"
)
_DRAFT = re.compile(r"\.(.+)\.([0-9]+)")

#: Names of files, relative to the report's folder, each with the sha256 of what was written.
_Listed = set[tuple[str, str]]


def write_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Write all files or none, then remove what earlier reports wrote and this one did not.

    A file or a folder of the report that is a link is written where it leads; nothing there is removed. A
    file that was changed since a report wrote it is not removed either.

    Args:
        out: the folder of the report; created if necessary.
        files: contents by their names, relative to `out`, in the order in which they are put in place.

    Raises:
        UsageError: if a file is in the way that no report wrote.
        OSError: if they cannot be written, and an older report is then as it was; or if what it wrote cannot
            be removed.
    """
    earlier = _of_earlier_reports(out)
    _refuse_foreign(out, files)
    _sweep(out, files)
    written = {(name, _sha256(content)) for name, content in files.items()}
    # A report that is killed between its files is still known as one, by a list of the old and the new ones.
    _replace_all(out, {LIST_NAME: _as_list(written | earlier), **files})
    _remove(out, {(name, digest) for name, digest in earlier if name not in files})
    _replace_all(out, {LIST_NAME: _as_list(written)})


def strangers(out: Path) -> list[str]:
    """What is among the report's figures and tables, and not of this report; relative to `out`, sorted."""
    own = {name for name, _ in _listed(out)}
    return [name for name in sorted(_names(out)) if name not in own]


# ---- what reports wrote ------------------------------------------------------------------------


def _of_earlier_reports(out: Path) -> _Listed:
    if listed := _listed(out):
        return listed
    named = [name for name in _names(out) if _IN_FOLDERS.fullmatch(name)] if _is_report(out) else []
    return {(name, digest) for name in named if (digest := _sha256_of(out, name))}


def _listed(out: Path) -> _Listed:
    """The figures and tables that the list names; empty if there is none. Every report has a table."""
    try:
        lines = (out / LIST_NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    entries = [(match[2], match[1]) for line in lines if (match := _LINE.fullmatch(line))]
    return {(name, digest) for name, digest in entries if _IN_FOLDERS.fullmatch(name)}


def _is_report(out: Path) -> bool:
    try:
        with (out / REPORT_NAME).open("rb") as file:
            return file.readline().rstrip() == f"# {TITLE}".encode()
    except OSError:
        return False


def _names(out: Path) -> Iterator[str]:
    """The visible names in the folders of figures and tables."""
    for folder in (FIGURES_FOLDER, TABLES_FOLDER):
        with suppress(OSError):
            yield from (f"{folder}/{p.name}" for p in (out / folder).iterdir() if not p.name.startswith("."))


def _refuse_foreign(out: Path, files: Collection[str]) -> None:
    top = (name for name in (LIST_NAME, *files) if "/" not in name)
    taken = [out / name for name in top if (out / name).is_file()]
    if taken and not _listed(out) and not _is_report(out):
        raise UsageError(
            f"'{taken[0]}' is there, and no report wrote it; give another --out, or move that file away"
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of(out: Path, name: str) -> str | None:
    """The hash of a file in the folder itself; None if it is absent, or a link leads out of the folder."""
    path = out / name
    linked = path.is_symlink() or (path.parent != out and path.parent.is_symlink())
    return None if linked or not path.is_file() else _sha256(path.read_bytes())


def _as_list(files: _Listed) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(files)).encode()


# ---- writing and removing ----------------------------------------------------------------------


def _replace_all(out: Path, files: Mapping[str, bytes]) -> None:
    with _drafts(out, files) as moves:
        before: list[tuple[Path, bytes | None]] = []
        try:
            for draft, place in moves:
                before.append((place, place.read_bytes() if place.exists() else None))
                draft.replace(place)
        except BaseException:
            for place, content in reversed(before):
                _restore(place, content)
            raise


@contextmanager
def _drafts(out: Path, files: Mapping[str, bytes]) -> Iterator[list[tuple[Path, Path]]]:
    """Each file under another name, and its place; what is not moved there is deleted."""
    moves = []
    try:
        for name, content in files.items():
            place = _place(out / name)
            draft = place.with_name(f".{place.name}.{os.getpid()}")
            moves.append((draft, place))
            draft.write_bytes(content)
        yield moves
    finally:
        for draft, _ in moves:
            draft.unlink(missing_ok=True)


def _place(path: Path) -> Path:
    """Where a file is put: where the links on its way lead.

    Raises:
        OSError: if something else than a file is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        raise OSError(None, f"'{path}' is there, and is not a file")
    return place


def _restore(place: Path, content: bytes | None) -> None:
    if content is None:
        place.unlink(missing_ok=True)
    elif place.read_bytes() != content:
        place.write_bytes(content)


def _remove(out: Path, files: _Listed) -> None:
    """Remove the files that are as they were written, and a folder that has none left."""
    for name, digest in files:
        if _sha256_of(out, name) == digest:
            (out / name).unlink()
    for folder in {(out / name).parent for name, _ in files} - {out}:
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def _sweep(out: Path, files: Collection[str]) -> None:
    """Delete the drafts that reports have left which were killed."""
    for folder in (out, out / FIGURES_FOLDER, out / TABLES_FOLDER):
        drafts = [(path, match) for path in _entries(folder) if (match := _DRAFT.fullmatch(path.name))]
        for path, match in drafts:
            name = (folder / match[1]).relative_to(out).as_posix()
            if (name in {LIST_NAME, *files} or _IN_FOLDERS.fullmatch(name)) and not _runs(int(match[2])):
                path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _runs(pid: int) -> bool:
    """Whether a process of this machine has the number; taken for granted where it cannot be asked."""
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
