"""What this machine has for us: CPU cores, by affinity and by the quota of a container or job, and memory.

A container that is limited to two CPUs of a machine with 64 still sees 64; the limit is a quota of time,
which the kernel's control groups state.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

#: Where control groups of version 1 that limit CPUs are mounted, below /sys/fs/cgroup.
_V1_MOUNTS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def cores() -> int:
    """CPU cores that this process may use, at least 1; of a quota, the whole ones."""
    quota = cpu_quota()
    return allowed() if quota is None else max(1, min(allowed(), int(quota)))


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory that programs can take without swapping; None where the system does not say."""
    with suppress(OSError):
        lines = (line.split() for line in meminfo.read_text(encoding="utf-8").splitlines())
        return next((1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:"), None)
    return None


def allowed() -> int:
    """CPU cores that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    count = getattr(os, "process_cpu_count", os.cpu_count)()  # since Python 3.13
    return count or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs whose time the control groups of this process may use; None without a limit.

    Args:
        root: of the file system.
    """
    groups = root / "sys" / "fs" / "cgroup"
    limits = [limit for path in _own_groups(root) for limit in _limits(groups, path)]
    return min(limits, default=None)


def _own_groups(root: Path) -> set[PurePosixPath]:
    """The groups of this process that may limit its CPUs, each with those above it.

    Inside a container the named groups may be mounted as the uppermost one.
    """
    with suppress(OSError, UnicodeDecodeError):
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        parts = [line.partition(":")[2].partition(":") for line in lines]
        own = [path for kinds, _, path in parts if kinds == "" or "cpu" in kinds.split(",")]
        relative = [PurePosixPath(path.lstrip("/")) for path in own if ".." not in path]
        return {group for path in relative for group in (path, *path.parents)}
    return set()


def _limits(groups: Path, path: PurePosixPath) -> Iterator[float]:
    """The limits of a group: in version 2 of control groups, perhaps beside version 1, and in version 1."""
    for folder in (groups / path, groups / "unified" / path):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            yield int(quota) / int(period)  # "max" is no limit
    for folder in (groups / mount / path for mount in _V1_MOUNTS):
        with suppress(OSError, ValueError, ZeroDivisionError):
            microseconds = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
            if microseconds > 0:  # -1 is no limit
                yield microseconds / int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))
