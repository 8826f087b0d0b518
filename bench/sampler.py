"""What sampling costs: microseconds of a step for rows of random logits, by the native and the torch sampler.

    python bench/sampler.py [--vocab 49152 151936] [--rows 1 8 32 64] [--threads 2] [--repeats 20]

Both samplers are timed in this run, in turn, each the best of its repeats (torch of three: it may take seconds). "of
reading" is native time over the time that reading the logits once takes at the bandwidth measured in the same run;
below 1 they came from cache. The logits are normal with deviation 2.5, flatter than a model's: more tokens are kept.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from headrace.bench.machine import read_bandwidth
from headrace.core.plan import SlotInit
from headrace.core.sampling_params import SamplingParams
from headrace.ops.native.core import set_threads
from headrace.sampling import NativeSampler, Sampler, SampleRows, TorchSampler

HISTORY = 1000
MIXES: dict[str, dict[str, float]] = {
    "greedy": {},
    "top-k 40, top-p 0.95": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "temperature": {"temperature": 1.0},
    "all penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "5 logprobs": {"logprobs": 5},
}


def bound(sampler: Sampler, n_rows: int, options: dict[str, float]) -> Sampler:
    """The sampler with a sequence of these options in each slot."""
    sampling = SamplingParams(max_tokens=None, **options)
    for slot in range(n_rows):
        init = SlotInit(slot, slot, (), HISTORY // 2, 0, sampling, slot, 0, frozenset(), frozenset(), 1 << 20)
        sampler.bind(init)
    return sampler


def best(sampler: Sampler, rows: SampleRows, logits: torch.Tensor, repeats: int) -> float:
    """Seconds of the fastest step."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        sampler.sample(rows, logits)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    set_threads(args.threads)
    torch.set_num_threads(args.threads)
    bandwidth = read_bandwidth(args.threads)
    print(f"{args.threads} threads, {bandwidth / 1e9:.1f} GB/s")
    print("  vocab rows  options                 native us   torch us torch/native of reading")
    generator = np.random.default_rng(0)
    for vocab in args.vocab:
        history = generator.integers(0, vocab, HISTORY)
        for n_rows in args.rows:
            logits = torch.from_numpy(generator.normal(0, 2.5, (n_rows, vocab)).astype(np.float32))
            rows = SampleRows.one_each(np.arange(n_rows), np.full(n_rows, HISTORY), lambda slot, h=history: h)
            for name, options in MIXES.items():
                native = best(bound(NativeSampler(n_rows, vocab), n_rows, options), rows, logits, args.repeats)
                plain = best(bound(TorchSampler(n_rows, vocab), n_rows, options), rows, logits, 3)
                reading = native * bandwidth / (logits.numel() * 4)
                print(
                    f"{vocab:7} {n_rows:4}  {name:22} {native * 1e6:10.0f} {plain * 1e6:10.0f}"
                    f" {plain / native:12.1f} {reading:10.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
