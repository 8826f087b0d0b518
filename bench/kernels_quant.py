"""Products of weights in blocks against what this machine can do at most.

    python bench/kernels_quant.py [--threads 2] [--rounds 15] [--format int8] [--dtype bfloat16] [--rows 1 8 512]

As ``kernels.py``: many copies of a weight are walked in turn, and times are set against reading the same bytes and
against as many products of bytes in registers, all in the same rounds, the best of each. int8: 8 bits; int4: 4 bits;
q4_1: 4 bits with minima; q4_k: the same with fp32 scales; q6_k: 8 bits in groups of 16. Rounding the rows of x is in
the times.
"""

from __future__ import annotations

import argparse
import sys

import torch

from headrace.core.cgroup import usable_cpus
from headrace.ops.memory import huge_zeros
from headrace.ops.native import core
from headrace.quant.formats import INT4, INT8, BlockFormat
from kernels import SHAPES, TURNS, WALKED_BYTES, seconds

FORMATS = {
    "int8": INT8,
    "int4": INT4,
    "q4_1": BlockFormat(4, 0, has_minimum=True),
    "q4_k": BlockFormat(4, 0, has_minimum=True, has_wide_scales=True),
    "q6_k": BlockFormat(8, 32, 16, has_wide_scales=True),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class BlockProduct:
    """One shape and format over many copies of its weight."""

    def __init__(self, n_out: int, n_in: int, segments: int, form: BlockFormat, dtype: torch.dtype) -> None:
        self.n_out, self.n_in, self.segments, self.dtype = n_out, n_in, segments, dtype
        self._native = core.native()
        self._format = self._native.BlockFormat(
            form.bits, form.offset, form.group, form.has_minimum, form.has_wide_scales
        )
        self.nbytes = self._native.packed_block_bytes(n_out, n_in, self._format)
        numbers = torch.randint(0, 1 << form.bits, (n_out, n_in), dtype=torch.uint8)
        scales = torch.rand(n_out, form.groups(n_in)).to(form.scale_dtype)
        minima = scales.neg()
        self._copies = [huge_zeros(self.nbytes) for _ in range(max(1, WALKED_BYTES // self.nbytes))]
        for copy in self._copies:
            self._native.pack_blocks(
                numbers.data_ptr(), scales.data_ptr(), minima.data_ptr() if form.has_minimum else 0, copy.data_ptr(),
                n_out, n_in, 0, self._format,
            )  # fmt: skip

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
                self._native.block_linear(
                    x.data_ptr(), w.data_ptr(), 0, y.data_ptr(), core.DTYPES[self.dtype], x.shape[0], self.n_in,
                    self.n_out, x.stride(0), y.stride(0), self.segments, False, self._format,
                )  # fmt: skip

        return seconds(run) / len(copies)

    def arithmetic(self) -> float:
        """Seconds for one product of bytes with its addition."""
        products = 0

        def run() -> None:
            nonlocal products
            products = self._native.multiply_all_bytes(TURNS)

        return seconds(run) / products


def measure(name: str, product: BlockProduct, rows: list[int], rounds: int) -> None:
    inputs = [torch.randn(n, product.n_in).to(product.dtype) for n in rows]
    outputs = [torch.empty(n, product.n_out, dtype=product.dtype) for n in rows]
    best: dict[object, float] = {}
    for _ in range(rounds):
        found: dict[object, float] = {"read": product.read(), "arithmetic": product.arithmetic()}
        found |= {n: product.multiply(x, y) for n, x, y in zip(rows, inputs, outputs, strict=True)}
        best = {key: min(value, best.get(key, value)) for key, value in found.items()}
    gops = 2e-9 / best["arithmetic"]
    limits = f"read {product.nbytes / best['read'] / 1e9:.1f} GB/s, peak {gops:.0f} GOP/s"
    print(f"{product.n_out} x {product.n_in} {name}: {limits}")
    for n in rows:
        read = best["read"] / best[n]
        peak = best["arithmetic"] * n * product.n_out * product.n_in / best[n]
        ratio = f"   {best[n] / best[1]:6.2f} /M=1" if 1 in best else ""
        print(f"  M={n:<4} {best[n] * 1e6:9.0f} us   {read:5.2f} read   {peak:5.2f} peak{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--format", choices=tuple(FORMATS), action="append")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 512])
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    args = parser.parse_args()
    if not core.is_available():
        sys.exit(core.reason())
    core.set_threads(args.threads)
    print(f"level {core.native().level()}, {args.threads} threads, {args.dtype}, best of {args.rounds}")
    for name in args.format or FORMATS:
        for shape in SHAPES[: args.shapes]:
            # A head computes the last rows of sequences only.
            rows = [n for n in args.rows if n < 64 or shape[0] < 100_000]
            measure(name, BlockProduct(*shape, FORMATS[name], DTYPES[args.dtype]), rows, args.rounds)


if __name__ == "__main__":
    main()
