"""Kernels of the native core against what this machine can do at most.

    python bench/kernels.py [--threads 2] [--rounds 15] [--dtype bfloat16] [--rows 1 8 512]

For each shape: the product's time at a few numbers of rows, next to the time of reading the same bytes (many copies of
the weight are walked in turn, so that all of it comes from memory) and to the time of as many multiplications in
registers. All are taken in the same rounds and the best of each counts: on a machine with other work, single rounds say
little. `read` is read time / time, 1.00 is the memory's limit; `peak` is multiplication time / time, 1.00 is the
arithmetic's limit; `/M=1` is time / time of one row.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from headrace.core.cgroup import usable_cpus
from headrace.ops.memory import huge_zeros
from headrace.ops.native import core

SHAPES = ((6144, 1024, 1), (1024, 3072, 4), (4096, 1024, 1), (1024, 2048, 4), (151_936, 1024, 1))
"""(outputs, inputs, segments): the products of Qwen3-0.6B: gate and up, down, q k and v, output, head."""

WALKED_BYTES = 256 << 20
"""Of weight copies: several times what caches hold."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TURNS = 1 << 18


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Product:
    """One shape and dtype over many copies of its weight."""

    def __init__(self, n_out: int, n_in: int, segments: int, dtype: torch.dtype) -> None:
        self.n_out, self.n_in, self.segments = n_out, n_in, segments
        self.dtype, self._code = dtype, core.DTYPES[dtype]
        self._native = core.native()
        self.nbytes = self._native.packed_bytes(n_out, n_in, self._code)
        rows = torch.randn(min(n_out, 4096), n_in).to(dtype)
        self._copies = [huge_zeros(self.nbytes) for _ in range(max(1, WALKED_BYTES // self.nbytes))]
        for copy in self._copies:
            for first in range(0, n_out, len(rows)):
                n = min(len(rows), n_out - first)
                self._native.pack_rows(rows.data_ptr(), copy.data_ptr(), self._code, n, n_in, n_in, first)

    def read(self) -> float:
        """Seconds to read one copy."""
        whole = self.nbytes // 512 * 512
        return seconds(lambda: [self._native.read_all(w.data_ptr(), whole) for w in self._copies]) / len(self._copies)

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Seconds for x times one copy."""
        # Where arithmetic is the limit, a few copies tell as much.
        copies = self._copies if x.shape[0] < 64 else self._copies[:2]

        def run() -> None:
            for w in copies:
                self._native.linear(
                    x.data_ptr(), w.data_ptr(), 0, y.data_ptr(), self._code, x.shape[0], self.n_in, self.n_out,
                    x.stride(0), y.stride(0), self.segments, False,
                )  # fmt: skip

        return seconds(run) / len(copies)

    def arithmetic(self) -> float:
        """Seconds for one multiplication with its addition."""
        products = 0

        def run() -> None:
            nonlocal products
            products = self._native.multiply_all(self._code, TURNS)

        return seconds(run) / products


def measure(product: Product, rows: list[int], rounds: int) -> None:
    inputs = [torch.randn(n, product.n_in).to(product.dtype) for n in rows]
    outputs = [torch.empty(n, product.n_out, dtype=product.dtype) for n in rows]
    best: dict[object, float] = {}
    for _ in range(rounds):
        found: dict[object, float] = {"read": product.read(), "arithmetic": product.arithmetic()}
        found |= {n: product.multiply(x, y) for n, x, y in zip(rows, inputs, outputs, strict=True)}
        best = {key: min(value, best.get(key, value)) for key, value in found.items()}
    name = f"{product.n_out} x {product.n_in} {str(product.dtype).removeprefix('torch.')}"
    gflops = 2e-9 / best["arithmetic"]
    print(f"{name}: read {product.nbytes / best['read'] / 1e9:.1f} GB/s, peak {gflops:.0f} GFLOP/s")
    for n in rows:
        read = best["read"] / best[n]
        peak = best["arithmetic"] * n * product.n_out * product.n_in / best[n]
        ratio = f"   {best[n] / best[1]:6.2f} /M=1" if 1 in best else ""
        print(f"  M={n:<4} {best[n] * 1e6:9.0f} us   {read:5.2f} read   {peak:5.2f} peak{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 512])
    args = parser.parse_args()
    if not core.is_available():
        sys.exit(core.reason())
    core.set_threads(args.threads)
    print(f"level {core.native().level()}, {args.threads} threads, best of {args.rounds}")
    for name in args.dtype or DTYPES:
        for shape in SHAPES:
            # A head computes the last rows of sequences only.
            rows = [n for n in args.rows if n < 64 or shape[0] < 100_000]
            measure(Product(*shape, DTYPES[name]), rows, args.rounds)


if __name__ == "__main__":
    main()
