"""Where the time of a decode step goes: a replayed one, the same operator by operator, and the memory's limit.

    python bench/step.py [--model smollm2-135m] [--batch 1 8] [--context 256] [--new 1] [--rounds 30]
                         [--quantization int8] [--cache int8]

Random weights in the shape of a model. ``--new`` rows of each sequence are computed, the last of its context: with
all of them the step is a prefill. ``read`` is the time of reading the step's weights and keys and values once, ``peak``
that of its products at the machine's matrix peak; ``replay`` a recorded step; ``eager`` the same calls out of Python.
All are taken in the same rounds and the best of each counts. Then the time of each kind of job, each job at its best;
products go by their place in a layer.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict

import torch

from headrace.cache.arena import arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.core.cgroup import usable_cpus
from headrace.core.plan import BLOCK_TOKENS
from headrace.layers.base import BuildContext
from headrace.models.registry import build_model
from headrace.ops.batch import Batch, GroupBatch
from headrace.ops.blocks import CACHE_DTYPES
from headrace.ops.native import core
from headrace.ops.native.record import Recorder
from headrace.ops.table import select_ops
from headrace.runner.build import arena_views
from headrace.runner.scheme import scheme_for
from headrace.weights.dummy import DummyCheckpoint
from kernels import DTYPES, seconds
from limits import peak

MODELS = {
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
        "tie_word_embeddings": True, "max_position_embeddings": 40_960,
    },
}  # fmt: skip
PRODUCTS = ("qkv", "o", "gate_up", "down")
"""Of a layer, in order."""


class Step:
    """A model with ``n_seqs`` sequences of ``context`` tokens, the last of each computed in this step."""

    def __init__(self, config: dict[str, object], dtype: torch.dtype, n_seqs: int, context: int, new: int,
                 quantization: str | None, cache: torch.dtype) -> None:  # fmt: skip
        ops = select_ops("cpu", dtype, kv_dtype=cache)
        ctx = BuildContext(ops, dtype, kv_dtype=cache, scheme=scheme_for(quantization, None, ops.round_blocks))
        self.model = build_model(config, ctx)
        shapes, zero = self.model.tensor_shapes(), self.model.zero_centred()
        self.model.load(DummyCheckpoint(config, shapes, seed=0, dtype=dtype, zero_centred=zero), threads=usable_cpus())
        self._groups = group_layers(self.model.cache_specs())
        self._dtype = dtype
        self._n_seqs, self._context, self._new = n_seqs, context, new
        columns = -(-context // BLOCK_TOKENS)
        views = arena_views(arena_for_tokens(self._groups, n_seqs * columns * BLOCK_TOKENS), self._groups, cache)
        self._views = [view.normal_() if cache.itemsize > 1 else view.view(torch.int32).random_(0x3F000000, 0x40000000)
                       for view in views]  # fmt: skip
        self.model.bind_cache([group.layers for group in self._groups], views)
        self.kv_bytes = n_seqs * context * sum(group.block_bytes for group in self._groups) // BLOCK_TOKENS
        self._table = (1 + torch.arange(n_seqs * columns, dtype=torch.int32)).view(n_seqs, columns)
        self._attention = ops.attention
        self._batch = self._planned()
        self.n_rows = n_seqs * new
        self.recorder = Recorder(self.n_rows)
        with self.recorder.recording(self.n_rows):
            self.run()

    def _planned(self) -> Batch:
        places = torch.arange(self._context - self._new, self._context)
        where = self._table[:, places // BLOCK_TOKENS].long() * BLOCK_TOKENS + places % BLOCK_TOKENS
        batch = Batch(
            input_ids=torch.arange(self._n_seqs * self._new),
            positions=places.repeat(self._n_seqs),
            query_starts=torch.arange(self._n_seqs + 1) * self._new,
            seq_lens=torch.full((self._n_seqs,), self._context),
            groups=tuple(GroupBatch(self._table, where.flatten()) for _ in self._groups),
        )
        for index, (group, part) in enumerate(zip(self._groups, batch.groups, strict=True)):
            part.metadata = self._attention.plan(batch, index, group.spec)
        return batch

    def run(self) -> torch.Tensor:
        with torch.inference_mode():
            hidden = self.model.forward(self._batch)
            # A prefill needs those of a few rows; all jobs of a recording have the same rows.
            return self.model.logits(hidden) if self._new == 1 else hidden

    def peak(self) -> float:
        """Seconds of all products at the machine's matrix peak."""
        weights = [p for p in self.model.parameters() if len(p.shape) == 2]
        body = sum(p.numel for p in weights if p.shape[0] != self.model.vocab_size)
        head = self.model.vocab_size * self.model.head.weight.shape[1] if self._new == 1 else 0
        return 2 * self.n_rows * (body + head) / peak(self._dtype, 1)

    def read(self) -> float:
        """Seconds to read all weights, and as many bytes as the keys and values are."""
        weights = [getattr(p.data, "memory", p.data) for p in self.model.parameters()]
        # Small ones count with their bytes.
        large = [w for w in weights if w.nbytes >= 1 << 16]

        def run() -> None:
            for w in large:
                core.native().read_all(w.data_ptr(), w.nbytes // 512 * 512)

        share = (sum(w.nbytes for w in weights) + self.kv_bytes) / sum(w.nbytes for w in large)
        return seconds(run) * share


def kinds(times: list[tuple[str, int]], n_layers: int) -> tuple[Counter[str], Counter[str]]:
    """Nanoseconds and jobs, by kind."""
    total: Counter[str] = Counter()
    jobs: Counter[str] = Counter()
    n_products = 0
    for kind, nanoseconds in times:
        name = kind
        if kind in ("Linear", "BlockLinear"):
            name = PRODUCTS[n_products % 4] if n_products < 4 * n_layers else "head"
            n_products += 1
        total[name] += nanoseconds
        jobs[name] += 1
    return total, jobs


def measure(step: Step, label: str, rounds: int) -> None:
    best: dict[str, float] = defaultdict(lambda: float("inf"))
    fastest: list[tuple[str, int]] = []
    for _ in range(rounds):
        best["read"] = min(best["read"], step.read())
        best["peak"] = min(best["peak"], step.peak())
        best["eager"] = min(best["eager"], seconds(step.run))
        best["replay"] = min(best["replay"], seconds(lambda: step.recorder.replay(step.n_rows)))
        times = step.recorder.replay_timed(step.n_rows)
        fastest = [min(pair, key=lambda job: job[1]) for pair in zip(times, fastest or times, strict=True)]
    read = best["read"]
    print(
        f"{label}: read {read * 1e3:.2f} ms ({(step.model.n_bytes + step.kv_bytes) / read / 1e9:.1f} GB/s)"
        f"   replay {best['replay'] * 1e3:.2f} ms, {read / best['replay']:.2f} read"
        f"   peak {best['peak'] * 1e3:.2f} ms, {best['peak'] / best['replay']:.2f} peak"
        f"   eager {best['eager'] * 1e3:.2f} ms, {best['eager'] / best['replay']:.2f} of replay"
    )
    total, jobs = kinds(fastest, len(step.model.cache_specs()))
    whole = sum(total.values())
    for name, nanoseconds in total.most_common():
        print(f"  {name:14} {nanoseconds / 1e3:8.0f} us {nanoseconds / whole:6.1%} {jobs[name]:4} jobs", end="")
        print(f" {nanoseconds / jobs[name] / 1e3:7.2f} us each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="smollm2-135m")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--new", type=int, default=1, help="rows of each sequence")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--quantization", choices=("int8", "int4"), help="of weights")
    parser.add_argument("--cache", choices=tuple(CACHE_DTYPES), help="keys and values; else in --dtype")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    if not core.is_available():
        sys.exit(core.reason())
    torch.set_num_threads(1)
    core.set_threads(args.threads)
    kept = f"{args.dtype}, weights in {args.quantization or args.dtype}, cache in {args.cache or args.dtype}"
    print(f"{args.model}, {kept}, context {args.context}, level {core.native().level()}, {args.threads} threads")
    for n_seqs in args.batch:
        dtype = DTYPES[args.dtype]
        cache = CACHE_DTYPES.get(args.cache, dtype)
        step = Step(MODELS[args.model], dtype, n_seqs, args.context, args.new, args.quantization, cache)
        measure(step, f"batch {n_seqs}", args.rounds)


if __name__ == "__main__":
    main()
