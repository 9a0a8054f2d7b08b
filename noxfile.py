"""The project's commands. One environment serves them all: torch alone takes six gigabytes.

nox -s bench -- [options of `python -m bench run`]    run a grid, then write its report
nox -s tests -- [options of pytest]                   the test suite
nox -s faults -- [options of pytest]                  failures injected into real runs, and their table
nox -s lint typecheck                                 ruff, mypy
nox -s gpu [-- --out FILE]                            what only a GPU can show; fails where there is none
nox -s docs                                           the documentation site, in site/; warnings are errors
nox -s perf -- cost [--methods finetune,ncm] ...      what each method costs, beside the plain timm ViT
nox -s perf -- overhead [--rounds 10] ...             how much slower the harness is than a bare loop
nox -s perf -- report [--methods 10] ...              how long the report of 1,000 records takes
nox -s perf -- speedup [--rounds 2] ...               how much faster each executor trains a grid
nox -s perf -- growth                                 what grows with cells, tasks, classes, image size
nox -s perf -- front [--methods dualprompt] ...       what keeping activations of frozen blocks would save
nox -s perf -- end-to-end [--rounds 3] ...            whole commands, beside a bare loop of the same passes
"""

import hashlib
import os
import signal
import subprocess
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.reuse_existing_virtualenvs = True

BIN = Path(".nox", "env", "Scripts" if os.name == "nt" else "bin")
PYTHON = str(BIN / "python")
STAMP = Path(".nox", "env", "installed")
#: Each takes about a gigabyte.
MAX_TEST_WORKERS = 4


@nox.session
def env(session: nox.Session) -> None:
    """Install the project and its tools, unless they are there already."""
    wanted = hashlib.sha256(Path("pyproject.toml").read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    session.install("--upgrade", "pip")
    session.install("-e", ".[dev]")
    STAMP.write_text(wanted)


@nox.session(venv_backend="none", requires=["env"])
def bench(session: nox.Session) -> None:
    """Run a grid and write its report."""
    code = patiently([PYTHON, "-m", "bench", "run", *session.posargs])
    if code == 2:
        session.error("the grid was not run")
    if not {"--dry-run", "--help", "-h"} & set(session.posargs):
        session.run(
            PYTHON, "-m", "bench", "report", "--results", results_folder(session.posargs), external=True
        )
    if code:
        session.error("some cells are not done")


def patiently(command: list[str]) -> int:
    """The exit status of a command that answers Ctrl-C and SIGTERM itself, and is given the time it takes."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the terminal has sent it to the command, too
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def results_folder(arguments: list[str]) -> str:
    """Where `run` puts its records: --results, else the config file's, else the default."""
    config = option(arguments, "--config")
    in_config = tomllib.loads(Path(config).read_text(encoding="utf-8")).get("results") if config else None
    return option(arguments, "--results") or in_config or "results"


def option(arguments: list[str], name: str) -> str | None:
    """The value of an option, as `run` understands it."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


@nox.session(venv_backend="none", requires=["env"])
def tests(session: nox.Session) -> None:
    """Run the test suite: files in parallel, one thread in each process; `-n 0` runs them in one process."""
    cores = session.run(
        PYTHON, "-c", "from bench.cores import cores; print(cores())", external=True, silent=True
    )
    workers = min(MAX_TEST_WORKERS, int(cores))
    parallel = ["-n", str(workers), "--dist", "loadfile", "--durations", "15"]
    session.run(
        PYTHON, "-m", "pytest", *parallel, *session.posargs, env={"OMP_NUM_THREADS": "1"}, external=True
    )


@nox.session(venv_backend="none", requires=["env"])
def faults(session: nox.Session) -> None:
    """Inject every known failure into real grids, and print what became of them."""
    session.run(PYTHON, "-m", "pytest", "tests/faults", "-m", "", *session.posargs, external=True)


@nox.session(venv_backend="none", requires=["env"])
def lint(session: nox.Session) -> None:
    """Check format and style."""
    session.run(PYTHON, "-m", "ruff", "format", "--check", ".", external=True)
    session.run(PYTHON, "-m", "ruff", "check", ".", external=True)


@nox.session(venv_backend="none", requires=["env"])
def typecheck(session: nox.Session) -> None:
    """Check types, strictly."""
    session.run(PYTHON, "-m", "mypy", external=True)


@nox.session(venv_backend="none", requires=["env"])
def docs(session: nox.Session) -> None:
    """Build the documentation site."""
    session.run(PYTHON, "-m", "mkdocs", "build", "--strict", *session.posargs, external=True)


@nox.session(venv_backend="none", requires=["env"])
def perf(session: nox.Session) -> None:
    """Run the measurement named first; by default cost and overhead."""
    name, *options = session.posargs or ["both"]
    parts = {
        "cost": ["cost"],
        "overhead": ["overhead"],
        "both": ["cost", "overhead"],
        "report": ["report_speed"],
        "speedup": ["speedup"],
        "growth": ["growth"],
        "front": ["front"],
        "end-to-end": ["end_to_end"],
    }
    if name not in parts:
        session.error(f"cannot measure '{name}'; legal: nox -s perf -- {' | '.join(parts)} [options]")
    for part in parts[name]:
        session.run(PYTHON, "-m", f"scripts.perf.{part}", *options, external=True)


@nox.session(venv_backend="none", requires=["env"])
def gpu(session: nox.Session) -> None:
    """Examine the GPUs of this machine, and print and write what was found."""
    session.run(PYTHON, "-m", "scripts.gpu.report", *session.posargs, external=True)
