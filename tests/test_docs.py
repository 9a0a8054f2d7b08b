"""The worked examples of the documentation run as they are printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXTS = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")),
    ROOT / "results" / "README.md",
]
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of one language on a page; commands have none."""
    text = (ROOT / "docs" / page).read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for marked, block in fenced if marked == language]


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
    opened = '        "digits": dict,\n'
    assert opened in contract
    test = tmp_path / "test_gratings.py"
    test.write_text(contract.replace(opened, opened + '        "gratings": dict,\n'))
    (tmp_path / "conftest.py").write_text("from tests.bench.benchmarks.conftest import *\n")
    checked = run(f"python -m pytest --rootdir {tmp_path} -c /dev/null {test} -k gratings -q")
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"\d+ passed", checked.stdout)


def test_the_example_of_an_executor_runs_cells_and_keeps_the_contract(installed, tmp_path):
    run = installed("adding-an-executor.md")
    command, contract = blocks("adding-an-executor.md")
    planned = run(command, "--dry-run", "--results", str(tmp_path / "results"))
    assert "half of the cores free" in planned.stdout
    done = run(command, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*/record.json")]
    assert [(r["status"], r["manifest"]["executor"]) for r in records] == 2 * [("done", "half")]
    checked = run(contract)
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"\d+ passed", checked.stdout)


def test_the_script_without_the_harness_learns():
    (script,) = blocks("plain-avalanche.md", "python")
    assert "bench." not in script.replace("avalanche.benchmarks", "")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.strip().splitlines()[-1]) > 0.5


def test_the_example_of_frames_prints_a_row_per_method():
    (script,) = blocks("results.md", "python")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^duallora +0\.\d+", done.stdout, re.MULTILINE)) == 2


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_local_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        outside = link.startswith("../../actions/")  # of the repository's page on GitHub
        assert outside or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_anchor_of_another_page_is_one_of_its_headings(page):
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        target = page.parent / link if link else page
        assert anchor in anchors(target.read_text()), f"{link}#{anchor}"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


NAMED = re.compile(r"`((?:bench|methods|reports|tests|scripts|docs|results)/[\w./-]+?)`")

#: What is named on a page and exists only after something was run, or once the reader wrote it.
MADE_LATER = re.compile(
    r"results/(?!README|published|reference)|(methods|executors|benchmarks)/NAME.py|NAME.toml"
)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    for name in NAMED.findall(page.read_text()):
        assert MADE_LATER.search(name) or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_module_that_a_command_runs_exists(page):
    for name in re.findall(r"python -m ((?:bench|scripts)[\w.]*)", page.read_text()):
        path = ROOT / name.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@pytest.mark.parametrize("page", ["fidelity.md", "footguns.md"])
def test_every_test_that_a_page_points_to_exists(page):
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    pointers = re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text())
    assert pointers
    assert [name for name in pointers if f"def {name}(" not in tests] == []


def test_fidelity_has_a_section_for_every_method():
    from methods.registry import METHODS

    headings = set(re.findall(r"^## `([\w-]+)`", (ROOT / "docs" / "fidelity.md").read_text(), re.MULTILINE))
    assert headings == {name for name in METHODS if METHODS[name].target.startswith("methods.")}


def test_the_glossary_explains_its_terms_in_one_or_two_sentences():
    rows = re.findall(
        r"^\| \*\*(.+?)\*\* \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE
    )
    assert len({term for term, _ in rows}) == len(rows) > 15
    assert [term for term, text in rows if not 1 <= len(re.findall(r"[.:](?=\s|$)", text)) <= 4] == []


def test_the_citation_is_of_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_an_issue_form_has_what_github_asks_of_it(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= content.keys()
    ids = [part["id"] for part in content["body"]]
    assert len(set(ids)) == len(ids)
    for part in content["body"]:
        assert part["type"] in {"input", "textarea", "dropdown", "checkboxes"}
        assert part["attributes"]["label"]
        assert part["type"] in {"input", "textarea"} or part["attributes"]["options"]
