"""What this machine can do at most, as JSON: reads of memory by size, and products in registers.

    python bench/limits.py [--threads 2] [--rounds 9] > limits.json

Memory is in pages of 2 MiB, walked in order with prefetches; the best of the rounds counts. A product and its sum are 2
floating-point operations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from headrace.core.cgroup import usable_cpus
from headrace.ops.memory import huge_zeros
from headrace.ops.native import core

SIZES_MB = (30, 90, 150, 270, 600, 1200)
TURNS = 1 << 20


def bandwidth(n_bytes: int, rounds: int) -> float:
    """Bytes a second."""
    memory = huge_zeros(n_bytes // 512 * 512)
    memory.fill_(1)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        core.native().read_all(memory.data_ptr(), memory.nbytes)
        best = min(best, time.perf_counter() - start)
    return memory.nbytes / best


def peak(dtype: torch.dtype, rounds: int) -> float:
    """Floating-point operations a second."""
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        products = core.native().multiply_all(core.DTYPES[dtype], TURNS)
        best = max(best, 2 * products / (time.perf_counter() - start))
    return best


def peak_bytes(rounds: int) -> float:
    """Operations a second on 8-bit numbers."""
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        products = core.native().multiply_all_bytes(TURNS)
        best = max(best, 2 * products / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if not core.is_available():
        sys.exit(core.reason())
    core.set_threads(args.threads)
    found = {
        "level": core.native().level(),
        "threads": args.threads,
        "read": {str(size): bandwidth(size * 10**6, args.rounds) for size in SIZES_MB},
        "peak": {
            "int8": peak_bytes(args.rounds),
            "bf16": peak(torch.bfloat16, args.rounds),
            "float32": peak(torch.float32, args.rounds),
        },
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
