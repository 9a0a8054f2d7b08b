"""The hash of the code that can change a number, which decides whether a checkpoint is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.cell.manifest import CODE, NUMERICAL_CODE, code_sha256
from methods.finetune import Finetune
from methods.ncm import Ncm
from methods.registry import METHODS


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of this project's packages."""
    for package in ("bench", "methods", "reports"):
        shutil.copytree(CODE / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_equal_code_has_equal_hashes_wherever_it_is(code: Path) -> None:
    assert code_sha256(Ncm, code) == code_sha256(Ncm)


@pytest.mark.parametrize(
    "file", ["bench/grid/scheduler.py", "bench/doctor.py", "bench/record.py", "reports/report.py"]
)
def test_editing_what_changes_no_number_keeps_the_hash(file: str, code: Path) -> None:
    before = code_sha256(Ncm, code)
    with (code / file).open("a") as text:
        text.write("# edited\n")
    assert code_sha256(Ncm, code) == before


@pytest.mark.parametrize("folder", NUMERICAL_CODE)
def test_editing_adding_or_removing_numerical_code_changes_the_hash(folder: str, code: Path) -> None:
    file, new = code / folder / "__init__.py", code / folder / "zzz.py"
    hashes = [code_sha256(Ncm, code)]
    with file.open("a") as text:
        text.write("# edited\n")
    hashes.append(code_sha256(Ncm, code))
    new.write_text("VALUE = 1\n")
    hashes.append(code_sha256(Ncm, code))
    new.unlink()
    hashes.append(code_sha256(Ncm, code))
    assert len(set(hashes)) == 3
    assert hashes[3] == hashes[1]


def test_the_hash_covers_the_file_of_the_method_wherever_it_is(code: Path) -> None:
    """As for a method of another package, whose file is not among this project's."""
    assert code_sha256(Ncm, code) != code_sha256(Finetune, code)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_hash_is_the_same_at_every_call_and_differs_by_method(name: str) -> None:
    assert code_sha256(METHODS[name].load()) == code_sha256(METHODS[name].load())
    assert len({code_sha256(METHODS[other].load()) for other in METHODS}) == len(METHODS)
