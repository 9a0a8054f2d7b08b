"""The worked examples of the documentation run as they are printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of one language on a page; commands have none."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


@pytest.fixture
def installed(tmp_path: Path):
    """Installs a page's example as a package with the page's entry point; returns a runner of commands."""

    def install(page: str):
        (source,), (project,) = blocks(page, "python"), blocks(page, "toml")
        ((group, points),) = tomllib.loads(project)["project"]["entry-points"].items()
        info = tmp_path / "my_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
        lines = [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for target in points.values():
            file = tmp_path / target.partition(":")[0].replace(".", "/")
            file.parent.mkdir(exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.with_suffix(".py").write_text(source)
        return run

    def run(command: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(command)
        assert words[0] == "python"
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        environment["OMP_NUM_THREADS"] = "1"  # tiny tensors: a second thread costs more than it brings
        return subprocess.run(
            [sys.executable, *words[1:], *more], capture_output=True, text=True, cwd=ROOT, env=environment
        )

    return install


def test_the_example_of_a_method_runs_is_reported_on_and_keeps_the_contract(installed, tmp_path):
    run, results = installed("adding-a-method.md"), tmp_path / "results"
    command, contract = blocks("adding-a-method.md")
    done = run(command, "--weights", "random", "--results", str(results))
    assert done.returncode == 0, done.stderr
    assert "first-task:rank=2" in done.stdout
    assert run(f"python -m bench report --results {results}").returncode == 0
    assert "Frobenius norm of the change" in (results / "report" / "report.md").read_text()
    checked = run(contract)
    assert checked.returncode == 0, checked.stdout
    assert "FAILED" not in checked.stdout


def test_the_example_of_a_benchmark_runs_and_is_listed(installed, tmp_path):
    run = installed("adding-a-benchmark.md")
    (command,) = blocks("adding-a-benchmark.md")
    done = run(command, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    assert "gratings:orientations=4" in done.stdout
    assert "gratings" in run("python -m bench list").stdout


def test_the_example_of_a_benchmark_keeps_what_the_contract_asks(installed, tmp_path):
    """The contract's tests, with the line of options that the page asks for."""
    run = installed("adding-a-benchmark.md")
    contract = (ROOT / "tests/bench/benchmarks/test_contract.py").read_text()
    opened = '        "digits": {},\n'
    assert opened in contract
    test = tmp_path / "test_gratings.py"
    test.write_text(contract.replace(opened, opened + '        "gratings": {},\n'))
    (tmp_path / "conftest.py").write_text("from tests.bench.benchmarks.conftest import *\n")
    checked = run(f"python -m pytest --rootdir {tmp_path} -c /dev/null {test} -k gratings -q")
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"\d+ passed", checked.stdout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


NAMED = re.compile(r"`((?:bench|methods|reports|tests|scripts|docs|results)/[\w./-]+?)`")


@pytest.mark.parametrize("page", ["adding-a-method.md", "adding-a-benchmark.md", "fidelity.md"])
def test_every_file_that_is_named_exists(page):
    for name in NAMED.findall((ROOT / "docs" / page).read_text()):
        assert (ROOT / name).exists(), name


def test_every_test_that_fidelity_points_to_exists():
    text = (ROOT / "docs" / "fidelity.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_fidelity_has_a_section_for_every_method():
    from methods.registry import METHODS

    headings = set(re.findall(r"^## `([\w-]+)`", (ROOT / "docs" / "fidelity.md").read_text(), re.MULTILINE))
    assert headings == {name for name in METHODS if METHODS[name].target.startswith("methods.")}
