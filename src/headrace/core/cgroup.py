"""The limits that a container has set: CPUs and memory, from control groups of version 1 and 2.

``root`` is where /proc and /sys hang, so that tests can bring their own.
"""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may keep busy: those of its affinity mask, or what the quota amounts to if that is less.

    A thread beyond the quota would be stopped in the middle of a step, and the others would wait for it.
    """
    allowed, quota = len(os.sched_getaffinity(0)), quota_cpus(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def limits(root: Path, controller: str, v2: str, v1: str) -> list[int]:
    """The limits of all levels; a level without a limit gives none."""
    found = []
    for folder in _folders(root, controller):
        for name in (v2, v1):
            if (folder / name).exists():
                text = (folder / name).read_text().strip()
                found += [int(text)] if text.isdecimal() else []
    return found


def quota_cpus(root: Path) -> float | None:
    """CPUs' worth of time that the control group grants: the tightest of all levels; None: no limit."""
    shares = []
    for folder in _folders(root, "cpu"):
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
            shares += [int(quota) / int(period)] if quota != "max" else []
        if (folder / "cpu.cfs_quota_us").exists():
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            period_us = int((folder / "cpu.cfs_period_us").read_text())
            shares += [quota_us / period_us] if quota_us > 0 else []
    return min(shares, default=None)


def _folders(root: Path, controller: str) -> list[Path]:
    """Folders of the process's control group and its parents, innermost first, for version 2 and version 1 trees."""
    file = root / "proc/self/cgroup"
    folders: list[Path] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        _, names, path = line.split(":", 2)
        if names == "":
            base = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        inner = base / path.lstrip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder == base or folder.is_relative_to(base)]
    return folders
