"""CPU cores by affinity and by the quota of control groups, on invented file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import cores as module
from bench.cores import allowed, cores, cpu_quota

V1 = "4:memory:/docker/1f\n2:cpu,cpuacct:/docker/1f\n"
CPU_MAX, QUOTA, PERIOD = "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"

#: /proc/self/cgroup, the files below /sys/fs/cgroup, and the CPUs that they allow.
SYSTEMS: dict[str, tuple[str | None, dict[str, str], float | None]] = {
    "docker, v2": ("0::/\n", {CPU_MAX: "150000 100000\n"}, 1.5),
    "no limit, v2": ("0::/\n", {CPU_MAX: "max 100000\n"}, None),
    "uppermost group of a machine, which has no file": ("0::/\n", {}, None),
    "a job in a slice, v2": (
        "0::/slurm/job_1/step_0\n",
        {"slurm/job_1/step_0/cpu.max": "max 100000", "slurm/job_1/cpu.max": "400000 100000"},
        4.0,
    ),
    "the tightest of several, v2": (
        "0::/a/b\n",
        {"a/b/cpu.max": "800000 100000", "a/cpu.max": "200000 50000"},
        4.0,
    ),
    "another group's, v2": ("0::/a\n", {"b/cpu.max": "100000 100000"}, None),
    "docker, v1": (V1, {f"cpu,cpuacct/{QUOTA}": "200000\n", f"cpu,cpuacct/{PERIOD}": "100000\n"}, 2.0),
    "by its whole name, v1": (
        V1,
        {f"cpu/docker/1f/{QUOTA}": "50000", f"cpu/docker/1f/{PERIOD}": "100000"},
        0.5,
    ),
    "no limit, v1": (V1, {f"cpu/{QUOTA}": "-1\n", f"cpu/{PERIOD}": "100000\n"}, None),
    "both versions": (
        f"{V1}0::/x\n",
        {"unified/x/cpu.max": "300000 100000", f"cpu/{QUOTA}": "-1", f"cpu/{PERIOD}": "100000"},
        3.0,
    ),
    "not Linux": (None, {}, None),
    "broken": ("0::/\nnonsense", {CPU_MAX: "1\n"}, None),
    "broken numbers": ("0::/\n", {CPU_MAX: "100000 0\n"}, None),
    "out of its name space": ("0::/../../other\n", {CPU_MAX: "200000 100000"}, None),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_quota_is_that_of_the_groups(system: str, tmp_path: Path) -> None:
    own, files, expected = SYSTEMS[system]
    if own is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(own)
    for name, content in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (2.0, 2), (2.9, 2), (0.5, 1), (64.0, 8)])
def test_cores_are_the_whole_ones_of_the_quota(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    assert cores() == expected


def test_without_affinity_the_machine_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert allowed() == 6
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert allowed() == 3
    monkeypatch.setattr(os, "process_cpu_count", lambda: None, raising=False)
    assert allowed() == 1
