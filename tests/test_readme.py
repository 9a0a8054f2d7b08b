"""The README's own code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_plain_avalanche_script_learns_without_the_harness():
    (script,) = [block for block in BLOCKS if "Naive(" in block]
    assert "bench." not in script.replace("avalanche.benchmarks", "")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert float(done.stdout.strip().splitlines()[-1]) > 0.5


def test_the_example_of_a_new_method_is_found_and_runs(tmp_path, monkeypatch):
    (source,) = [block for block in BLOCKS if "my-method" in block]
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_method.py").write_text(source)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[duallora_bench.methods]\nmy-method = my_package.my_method:MyMethod\n"
    )
    code = (
        "import sys; from bench.cli import main; "
        "sys.exit(main('run --methods my-method:strength=0.1 --scale smoke --tasks 2 --seeds 0 "
        "--weights random "
        f"--results {tmp_path / 'results'}'.split()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "PATH": "",
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": matplotlib.get_configdir(),  # in a new home, the list of fonts is made first
        },
    )
    assert done.returncode == 0, done.stderr
    assert "my-method:strength=0.1" in done.stdout


@pytest.mark.parametrize(
    "link", re.findall(r"\]\((?!http|\.\./\.\./actions)([^)#]+)\)", (ROOT / "README.md").read_text())
)
def test_every_local_link_leads_somewhere(link):
    assert (ROOT / link).exists()
