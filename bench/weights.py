"""How fast weights get from a folder into the panels that the native core reads.

    python bench/weights.py [--gb 1.2] [--threads 1 2] [--rounds 4]

A model of about that size in bfloat16 is written to a temporary folder and loaded again and again, with each number of
threads in turn. The file is in the page cache. ``first`` is the first load of a process, which takes its memory from
the system; ``best`` is the best of the others, which may take it from what the load before gave back. ``read`` is the
time of reading the file alone, on one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch

from headrace.layers.base import BuildContext
from headrace.models.base import Model
from headrace.models.registry import build_model
from headrace.ops.table import select_ops
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.dummy import DummyCheckpoint, write_safetensors

LAYER = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8}
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "max_position_embeddings": 4096} | LAYER
LAYER_BYTES = 2 * (6144 * 1024 + 1024 * 2048 + 3 * 1024 * 3072)
VOCABULARY = 65_536


def model(config: dict[str, object]) -> Model:
    return build_model(config, BuildContext(select_ops("cpu", torch.bfloat16), torch.bfloat16))


def write(folder: Path, gigabytes: float) -> None:
    layers = max(1, round((gigabytes * 1e9 - VOCABULARY * 2048) / LAYER_BYTES))
    config = CONFIG | {"num_hidden_layers": layers, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    weights = DummyCheckpoint(config, model(config).tensor_shapes(), seed=0)
    write_safetensors(folder, config, {name: weights.tensor(name) for name in weights.names()})


def timed_load(folder: Path, threads: int) -> tuple[float, int]:
    """Seconds, and bytes loaded."""
    checkpoint = open_checkpoint(folder)
    filled = model(checkpoint.config())
    start = time.perf_counter()
    filled.load(checkpoint, threads=threads)
    seconds = time.perf_counter() - start
    checkpoint.close()
    return seconds, filled.n_bytes


def timed_read(folder: Path) -> float:
    buffer = bytearray(1 << 20)
    start = time.perf_counter()
    with (folder / "model.safetensors").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def measure(folder: Path, threads: int, rounds: int) -> None:
    torch.set_num_threads(1)
    read = min(timed_read(folder) for _ in range(2))
    loads = [timed_load(folder, threads) for _ in range(rounds)]
    first, best, gigabytes = loads[0][0], min(loads[1:])[0], loads[0][1] / 1e9
    print(f"{threads} threads: {gigabytes:.2f} GB   first {first:.2f} s ({gigabytes / first:.2f} GB/s)", end="")
    print(f"   best {best:.2f} s ({gigabytes / best:.2f} GB/s)   read {read:.2f} s ({gigabytes / read:.2f} GB/s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), args.gb)
        for threads in args.threads:
            # A process each: the first load of one is not like the others.
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(Path(name), threads, args.rounds)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
