"""What this machine is: CPU, instruction sets, limits of the process, and how fast it reads memory.

Linux only: the facts come from /proc, /sys and the process's control groups. ``root`` is where those trees hang, so
that tests can bring their own.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from headrace.core.cgroup import limits, quota_cpus

ISA_FLAGS: dict[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI (int8)",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "asimddp": "NEON dot product (int8)",
    "bf16": "NEON BF16",
    "i8mm": "NEON int8 matrix",
    "sve": "SVE",
}
"""Flags in /proc/cpuinfo that decide how fast the engine can be, and what they are called."""

_X86 = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_ARM = ("asimd", "asimddp", "bf16", "i8mm", "sve")
BANDWIDTH_BYTES = 512 << 20
"""Larger than the last-level cache of almost every machine."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that cost nothing to read. Sizes in bytes."""

    cpu: str
    architecture: str
    isa: dict[str, bool]
    """Flags of ``ISA_FLAGS`` that belong to this architecture, present or not."""
    cpus: int
    """Logical CPUs of the machine."""
    allowed_cpus: int
    """CPUs that this process may run on (its affinity mask)."""
    quota_cpus: float | None
    """CPU time a second that the control group grants; None: no limit."""
    memory: int
    memory_limit: int | None
    """Limit of the control group; None: no limit below the machine's memory."""
    huge_pages: str | None
    """Transparent huge pages: always, madvise or never; None: not known."""
    open_files: int | None
    """Files and connections that this process may have open at once (the soft limit); None: any number."""


def read_machine(root: Path = Path("/")) -> Machine:
    """Reads the facts of this machine and this process."""
    info = _cpuinfo(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    architecture = platform.machine()
    known = _ARM if architecture in ("aarch64", "arm64") else _X86
    memory = _meminfo(root)["MemTotal"]
    limit = _smallest(limits(root, "memory", "memory.max", "memory.limit_in_bytes"))
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        cpu=info.get("model name") or info.get("Model") or architecture,
        architecture=architecture,
        isa={flag: flag in flags for flag in known},
        cpus=os.cpu_count() or 1,
        allowed_cpus=len(os.sched_getaffinity(0)),
        quota_cpus=quota_cpus(root),
        memory=memory,
        memory_limit=limit if limit is not None and limit < memory else None,
        huge_pages=_huge_pages(root),
        open_files=None if open_files == resource.RLIM_INFINITY else open_files,
    )


def read_bandwidth(threads: int, *, n_bytes: int = BANDWIDTH_BYTES, repeats: int = 5) -> float:
    """Bytes read a second when ``threads`` threads stream a buffer of ``n_bytes``: the best of ``repeats``.

    The load is an OR over 64-bit words: it reads every byte once, writes nothing and is bound by memory, not by
    arithmetic. This is what a decode step can at most do with the weights.
    """
    import numpy as np

    words = np.ones(n_bytes // 8, dtype=np.uint64)
    parts = np.array_split(words, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            # numpy gives the lock back inside the reduction, so the threads do run side by side.
            list(pool.map(np.bitwise_or.reduce, parts))
            best = min(best, time.perf_counter() - start)
    return words.nbytes / best


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entry."""
    entry: dict[str, str] = {}
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        if not line.strip() and entry:
            break
        name, _, value = line.partition(":")
        entry[name.strip()] = value.strip()
    return entry


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name; the file counts in kB, which are KiB."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) << 10 for name, _, value in pairs}


def _huge_pages(root: Path) -> str | None:
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    if not path.exists():
        return None
    # The kernel puts brackets around the setting in force: "always [madvise] never".
    return path.read_text().partition("[")[2].partition("]")[0] or None


def _smallest(numbers: list[int]) -> int | None:
    return min(numbers, default=None)
