"""Peak memory and time of loading a checkpoint, and of starting a tiny engine.

    python bench/load.py [--layers 28] [--hidden 1024]

Writes a random bfloat16 checkpoint in the shape of Qwen3-0.6B (by default) to a temporary folder, loads it in a fresh
process with a small cache, and compares the peak resident memory of that process with 1.1 x checkpoint + 300 MB.
The tiny engine's start is timed in the same process, torch imported before.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MB = 1e6


def write_model(folder: Path, *, layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int) -> int:
    """A random Qwen3 checkpoint; returns its bytes."""
    import torch

    from headrace.layers.base import BuildContext
    from headrace.models.registry import build_model
    from headrace.ops.table import select_ops
    from headrace.weights.dummy import DummyCheckpoint, write_safetensors

    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": 1,
    }
    model = build_model(config, BuildContext(select_ops("cpu", torch.bfloat16), torch.bfloat16))
    dummy = DummyCheckpoint(config, model.tensor_shapes(), seed=1, dtype=torch.bfloat16)
    write_safetensors(folder, config, {name: dummy.tensor(name) for name in dummy.names()}, shard_bytes=500_000_000)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def peak_memory() -> int:
    """Bytes; of this program alone (``ru_maxrss`` would start from what the parent held when it forked)."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def measure(folder: Path, tiny: Path) -> None:
    """In a fresh process: loads both models and prints what it took as JSON."""
    import torch  # noqa: F401  its import is not part of a start

    from headrace import LLM, KvCacheConfig

    imported = peak_memory()
    starts = []
    for _ in range(3):
        before = time.perf_counter()
        llm = LLM(tiny, skip_tokenizer_init=True, kv_cache_config=KvCacheConfig(max_tokens=1024))
        starts.append(time.perf_counter() - before)
        llm.shutdown()
    before = time.perf_counter()
    llm = LLM(folder, skip_tokenizer_init=True, kv_cache_config=KvCacheConfig(max_tokens=1024))
    seconds = time.perf_counter() - before
    peak = peak_memory()
    llm.shutdown()
    print(json.dumps({"imported": imported, "peak": peak, "seconds": seconds, "tiny_starts": starts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("MODEL", "TINY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, tiny = Path(temporary, "model"), Path(temporary, "tiny")
        inner, vocab = 3 * args.hidden, 151_936
        size = write_model(
            folder, layers=args.layers, hidden=args.hidden, inner=inner, heads=16, kv_heads=8, vocab=vocab
        )
        write_model(tiny, layers=2, hidden=64, inner=96, heads=2, kv_heads=1, vocab=320)
        command = [sys.executable, __file__, "--measure", str(folder), str(tiny)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    limit = 1.1 * size + 300 * MB
    print(f"checkpoint            {size / MB:8.0f} MB")
    print(f"after import of torch {found['imported'] / MB:8.0f} MB")
    print(f"peak while loading    {found['peak'] / MB:8.0f} MB   limit 1.1 x + 300 MB = {limit / MB:.0f} MB")
    print(f"load                  {found['seconds']:8.2f} s     {size / found['seconds'] / 1e9:.2f} GB/s")
    print(f"start of a tiny engine {min(found['tiny_starts']) * 1e3:7.0f} ms    limit 100 ms (best of 3)")
    sys.exit(found["peak"] > limit or min(found["tiny_starts"]) > 0.1)


if __name__ == "__main__":
    main()
