"""Attention of the native core against what this machine can do at most.

    python bench/kernels_attention.py [--threads 2] [--rounds 15] [--dtype bfloat16] [--cache int8] [--cache fp8]

Of rows in one dtype over caches in several, by default over that of the rows.

Decode: one row for each of a batch of sequences, in every layer of a cache of several times what the CPU's caches hold;
next to the time of reading the same bytes. `read` is read time / time: 1.00 is the memory's limit. Prefill: all rows of
one sequence; next to the time of as many multiplications in registers, keys that a row may not see not counted. `peak`
is multiplication time / time. Everything is taken in the same rounds and the best of each counts: on a machine with
other work, single rounds say little. Writing keys and values is timed apart, per row.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import torch

from headrace.cache.specs import FullKV
from headrace.core.plan import BLOCK_TOKENS
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.blocks import CACHE_DTYPES
from headrace.ops.memory import huge_zeros
from headrace.ops.native import core
from headrace.ops.native.attention import BACKEND
from kernels import DTYPES, TURNS, WALKED_BYTES, seconds

HEADS = ((9, 3, 64), (16, 8, 128))
"""(query heads, KV heads, head_dim): SmolLM2-135M, Qwen3-0.6B."""

DECODES = ((8, 384), (8, 2048), (1, 2048))
"""(sequences, tokens of each)."""

PREFILLS = (512, 2048)


class Case:
    """``n_seqs`` sequences of ``length`` tokens, the last ``n_rows`` of them computed now, in many layers."""

    def __init__(self, heads: tuple[int, int, int], n_seqs: int, length: int, n_rows: int, dtype: torch.dtype,
                 cache: torch.dtype) -> None:  # fmt: skip
        n_heads, n_kv, dim = heads
        self.heads, self._code = heads, core.DTYPES[dtype]
        columns = -(-length // BLOCK_TOKENS)
        n_blocks = n_seqs * columns
        self._spec = FullKV(n_kv, dim, cache.itemsize)
        numbers = self._spec.bytes_per_block // cache.itemsize
        self.layer_bytes = n_blocks * self._spec.bytes_per_block
        n_layers = 1 if n_rows > 1 else max(1, WALKED_BYTES // self.layer_bytes)
        self._memory = huge_zeros(n_layers * self.layer_bytes)
        self._cache = self._memory.view(cache).view(n_blocks, n_layers, numbers)
        if cache.itemsize > 1:
            self._cache.normal_()
        else:
            # Numbers of all sizes, and scales of about 1.
            self._memory.view(torch.int32).random_(0x3F000000, 0x40000000)
        # Blocks as a long-running server has them: in no order.
        table = torch.randperm(n_blocks, generator=torch.Generator().manual_seed(0)).to(torch.int32)
        table = table.view(n_seqs, columns)
        rows = n_seqs * n_rows
        self.products = n_seqs * sum(range(length - n_rows + 1, length + 1)) * n_heads * dim * 2
        positions = torch.arange(length - n_rows, length)
        where = table[:, positions // BLOCK_TOKENS].long() * BLOCK_TOKENS + positions % BLOCK_TOKENS
        self._batch = Batch(
            input_ids=torch.zeros(rows, dtype=torch.int64),
            positions=positions.repeat(n_seqs),
            query_starts=torch.arange(n_seqs + 1) * n_rows,
            seq_lens=torch.full((n_seqs,), length),
            groups=(GroupBatch(table, where.flatten().contiguous()),),
        )
        self._plan = BACKEND.plan(self._batch, 0, self._spec)
        self._layers = [BACKEND.bind(self._cache[:, layer], self._spec) for layer in range(n_layers)]
        self._qkv = torch.randn(rows, n_heads + 2 * n_kv, dim).to(dtype)
        self._y = torch.empty(rows, n_heads, dim, dtype=dtype)

    def read(self) -> float:
        """Seconds to read what one layer keeps."""
        whole = self._memory.numel() // 512 * 512
        native = core.native()
        return seconds(lambda: native.read_all(self._memory.data_ptr(), whole)) / len(self._layers)

    def attend(self) -> float:
        """Seconds for one layer."""
        n_heads, n_kv, dim = self.heads
        q, native, rows = self._qkv[:, :n_heads], core.native(), self._qkv.shape[0]

        def run() -> None:
            for kv in self._layers:
                native.attend(
                    self._plan, q.data_ptr(), kv.address, self._y.data_ptr(), 0, self._code, kv.dtype, rows,
                    q.stride(0), kv.block_stride, n_heads, n_kv, dim, dim, dim**-0.5, 0.0,
                )  # fmt: skip

        return seconds(run) / len(self._layers)

    def write(self) -> float:
        """Seconds to write the rows' keys and values into one layer."""
        n_heads, n_kv, dim = self.heads
        k, v = self._qkv[:, n_heads : n_heads + n_kv], self._qkv[:, n_heads + n_kv :]
        native, rows = core.native(), self._qkv.shape[0]

        def run() -> None:
            for kv in self._layers:
                native.write_kv(
                    self._plan, k.data_ptr(), v.data_ptr(), kv.address, self._code, kv.dtype, rows, k.stride(0),
                    v.stride(0), kv.block_stride, n_kv, dim, dim,
                )  # fmt: skip

        return seconds(run) / len(self._layers)

    def plan(self) -> float:
        """Seconds to plan a step."""
        return seconds(lambda: BACKEND.plan(self._batch, 0, self._spec))


def arithmetic(code: int) -> float:
    """Seconds for one multiplication with its addition, all threads together."""
    products = 0

    def run() -> None:
        nonlocal products
        products = core.native().multiply_all(code, TURNS)

    return seconds(run) / products


def best_of(rounds: int, parts: dict[str, Callable[[], float]]) -> dict[str, float]:
    best = {name: part() for name, part in parts.items()}
    for _ in range(rounds - 1):
        best = {name: min(best[name], part()) for name, part in parts.items()}
    return best


def measure(heads: tuple[int, int, int], name: str, cache: str, rounds: int) -> None:
    dtype, code, kv_dtype = DTYPES[name], core.DTYPES[DTYPES[name]], CACHE_DTYPES[cache]
    print("{} query heads, {} KV heads of {}, {} over a cache in {}".format(*heads, name, cache))
    for n_seqs, length in DECODES:
        case = Case(heads, n_seqs, length, 1, dtype, kv_dtype)
        parts = {"read": case.read, "attend": case.attend, "write": case.write, "plan": case.plan}
        best = best_of(rounds, parts)
        print(
            f"  decode {n_seqs} x {length:<5} {best['attend'] * 1e6:9.0f} us  {best['read'] / best['attend']:5.2f} read"
            f"  ({case.layer_bytes / best['read'] / 1e9:.1f} GB/s)  write {best['write'] * 1e6 / n_seqs:.2f} us a row"
            f"  plan {best['plan'] * 1e6:.1f} us"
        )
    for length in PREFILLS:
        case = Case(heads, 1, length, length, dtype, kv_dtype)
        parts = {"attend": case.attend, "write": case.write, "product": lambda: arithmetic(code)}
        best = best_of(rounds, parts)
        share = best["product"] * case.products / best["attend"]
        print(
            f"  prefill {length:<9} {best['attend'] * 1e6:9.0f} us  {share:5.2f} peak"
            f"  ({2e-9 / best['product']:.0f} GFLOP/s)  write {best['write'] * 1e6 / length:.2f} us a row"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append")
    parser.add_argument("--cache", choices=tuple(CACHE_DTYPES), action="append")
    args = parser.parse_args()
    if not core.is_available():
        sys.exit(core.reason())
    core.set_threads(args.threads)
    print(f"level {core.native().level()}, {args.threads} threads, best of {args.rounds}")
    for name in args.dtype or DTYPES:
        caches: Sequence[str] = args.cache or [name]
        for heads in HEADS:
            for cache in caches:
                measure(heads, name, cache, args.rounds)


if __name__ == "__main__":
    main()
