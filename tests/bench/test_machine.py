"""Facts of a machine, read from trees made by hand, and its bandwidth."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.bench.machine import read_bandwidth, read_machine

CPUINFO = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nmodel name\t: Other\n"
MEMINFO = "MemTotal:       1000000 kB\nMemFree:         500000 kB\nHugePages_Total:       0\n"


def _write(root: Path, files: dict[str, str]) -> Path:
    base = {"proc/cpuinfo": CPUINFO, "proc/meminfo": MEMINFO}
    for name, text in (base | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_limits(tmp_path: Path) -> None:
    machine = read_machine(_write(tmp_path, {}))
    assert machine.cpu == "Some CPU"
    assert machine.memory == 1000000 << 10
    assert machine.memory_limit is None
    assert machine.quota_cpus is None
    assert machine.huge_pages is None


def test_flags_are_those_of_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    isa = read_machine(_write(tmp_path, {})).isa
    assert isa["avx2"]
    assert isa["avx512f"]
    assert not isa["amx_bf16"]
    assert "asimd" not in isa


def test_the_tightest_level_of_version_2_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
        "sys/fs/cgroup/outer/memory.max": "max\n",
        "sys/fs/cgroup/outer/inner/memory.max": "104857600\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    machine = read_machine(_write(tmp_path, files))
    assert machine.quota_cpus == 1.5
    assert machine.memory_limit == 100 << 20
    assert machine.huge_pages == "madvise"


def test_version_1_limits(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n1:cpu:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "52428800\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    machine = read_machine(_write(tmp_path, files))
    assert machine.memory_limit == 50 << 20
    assert machine.quota_cpus == 0.5


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(1 << 50)}
    assert read_machine(_write(tmp_path, files)).memory_limit is None


def test_this_machine_can_be_read_and_measured() -> None:
    machine = read_machine()
    assert 1 <= machine.allowed_cpus <= machine.cpus
    # A small buffer, wide limits: this shows that bytes and seconds are the right way round.
    assert 1e7 < read_bandwidth(1, n_bytes=1 << 24, repeats=2) < 1e13
