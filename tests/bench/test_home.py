"""A user without a home folder, or with one that cannot be written to: containers, clusters."""

from __future__ import annotations

import ast
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from bench.benchmarks.base import data_roots
from bench.doctor import examine
from bench.storage import expanded
from methods.avalanche_parts import HOME, a_home, is_usable

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["a file", "absent and not to be made"])
def unwritable(request, tmp_path):
    """A home in which nothing can be written, whoever runs the test."""
    (tmp_path / "file").write_text("")
    return {"a file": tmp_path / "file", "absent and not to be made": tmp_path / "file" / "home"}[
        request.param
    ]


@pytest.fixture
def nobody(monkeypatch):
    """A user whom the system does not know, without HOME."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("DUALLORA_BENCH_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_avalanche_is_imported_without_a_home_to_write_to(unwritable):
    code = (
        "import os, methods.avalanche_parts as parts; print(os.environ['HOME']); "
        "from avalanche.benchmarks.datasets.dataset_utils import AVALANCHE_CONFIG as c; "
        "print(c['dataset_location'])"
    )
    environment = os.environ | {HOME: str(unwritable), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(unwritable), str(unwritable / ".avalanche" / "data")]


def test_no_other_file_imports_avalanche():
    """It would be imported with the real home, and could fail."""
    importing = {
        path.relative_to(ROOT).as_posix()
        for room in ("bench", "methods", "reports")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported(node)
        if name.partition(".")[0] == "avalanche"
    }
    assert importing == {"methods/avalanche_parts.py"}


def _imported(node):
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_a_home_is_replaced_only_where_it_must_be(unwritable, tmp_path, monkeypatch):
    monkeypatch.setenv(HOME, str(tmp_path))
    with a_home() as temporary:
        assert not temporary
        assert os.environ[HOME] == str(tmp_path)
    monkeypatch.setenv(HOME, str(unwritable))
    with a_home() as temporary:
        assert temporary
        assert os.environ[HOME] != str(unwritable)
    assert os.environ[HOME] == str(unwritable)


def test_without_the_variable_there_is_none_afterwards(nobody):
    with a_home() as temporary:
        assert temporary
        assert Path(os.environ[HOME]).is_dir()
    assert HOME not in os.environ


@pytest.mark.parametrize(("config", "usable"), [("{}", True), ("", False), ("[]", False), ("{", False)])
def test_a_configuration_that_was_cut_short_is_not_used(config, usable, tmp_path):
    (tmp_path / "config.json").write_text(config)
    assert is_usable(tmp_path) == usable


def test_a_user_without_a_home_has_a_place_for_data(nobody, tmp_path):
    assert all(root.is_absolute() for root in data_roots(None))
    assert data_roots(tmp_path)[0] == tmp_path
    assert expanded(Path("~/data")) == Path("~/data")
    assert expanded(Path("~nobody-of-that-name/data")) == Path("~nobody-of-that-name/data")


def test_doctor_tells_of_a_user_without_a_home(nobody):
    (line,) = [line for line in examine() if line.startswith("home: ")]
    assert "this user has none" in line
    assert str(data_roots(None)[-1]) in line


def test_doctor_tells_of_a_home_that_cannot_be_written_to(unwritable, monkeypatch):
    monkeypatch.setenv(HOME, str(unwritable))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (line,) = [line for line in examine() if line.startswith("home: ")]
    assert f"{unwritable} cannot be written to; runs work" in line


def test_doctor_says_nothing_of_a_home_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME, str(tmp_path))
    assert not [line for line in examine() if line.startswith("home: ")]


@pytest.mark.parametrize("option", ["--data-root", "--weights"])
def test_the_home_of_an_unknown_user_is_answered_in_a_sentence(option, cli):
    grid = ("--methods", "ncm", "--scale", "smoke", "--benchmarks", "image-folder:path=~nobody-there/x")
    status, _, err = cli("run", *grid, option, "~nobody-there/y")
    assert status == 2
    assert "~nobody-there" in err
