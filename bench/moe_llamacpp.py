"""The model of ``moe.py`` as a random GGUF file, and llama.cpp's batched bench on it."""

from __future__ import annotations

import subprocess
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

ARCH = "qwen3moe"
TYPES = {None: GGMLQuantizationType.BF16, "int8": GGMLQuantizationType.Q8_0, "int4": GGMLQuantizationType.Q4_0}
"""By ``--quant``: as many bits as headrace keeps."""


class LlamaCpp:
    """Runs ``llama-batched-bench``.

    Args:
        program: its path.
        file: the model; written if it is not there.
    """

    def __init__(self, program: Path, file: Path, args: Namespace) -> None:
        self._program, self._file, self._threads = program, file, args.threads
        if not file.exists():
            write(file, args)

    def seconds_a_step(self, batch: int, tokens: int) -> float:
        """Of decode steps alone, after prompts of 16 tokens."""
        command = [self._program, "-m", self._file, "-npp", "16", "-ntg", str(tokens), "-npl", str(batch)]
        command += ["-t", str(self._threads), "-c", str(batch * (tokens + 32))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | ...
        row = [cell.strip() for cell in done.stdout.strip().splitlines()[-1].split("|")] if done.stdout else []
        if row[1:4] != ["16", str(tokens), str(batch)]:
            raise RuntimeError(f"{self._program} has printed no row for batch {batch}: {done.stderr[-500:]}")
        return float(row[7]) / tokens


def write(file: Path, args: Namespace) -> None:
    """All experts have the same random weights: which are chosen is up to the router, which has its own."""
    form, random = TYPES[args.quant], np.random.default_rng(1)
    writer = GGUFWriter(file, ARCH)
    for key, value in {
        "block_count": args.layers,
        "context_length": 2048,
        "embedding_length": args.hidden,
        "feed_forward_length": 4 * args.hidden,
        "attention.head_count": args.hidden // 64,
        "attention.head_count_kv": max(1, args.hidden // 256),
        "attention.key_length": 64,
        "attention.value_length": 64,
        "expert_count": args.experts,
        "expert_used_count": args.top,
        "expert_feed_forward_length": args.inner,
        "vocab_size": args.vocabulary,
    }.items():
        writer.add_uint32(f"{ARCH}.{key}", value)
    writer.add_float32(f"{ARCH}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(f"{ARCH}.rope.freq_base", 10_000.0)
    writer.add_string("tokenizer.ggml.model", "none")
    for name, shape in _tensors(args):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        elif name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, random.standard_normal(shape, np.float32) * args.hidden**-0.5)
        else:
            # Tables are never in less than 8 bits, as in headrace.
            is_table = name in ("token_embd.weight", "output.weight")
            own = GGMLQuantizationType.Q8_0 if is_table and args.quant else form
            writer.add_tensor(name, _packed(random, own, shape), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(args: Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    h, n, inner = args.hidden, args.experts, args.inner
    kv = 64 * max(1, h // 256)
    yield "token_embd.weight", (args.vocabulary, h)
    yield "output_norm.weight", (h,)
    yield "output.weight", (args.vocabulary, h)
    layer = {
        "attn_norm": (h,), "attn_q": (h, h), "attn_k": (kv, h), "attn_v": (kv, h), "attn_output": (h, h),
        "attn_q_norm": (64,), "attn_k_norm": (64,), "ffn_norm": (h,), "ffn_gate_inp": (n, h),
        "ffn_gate_exps": (n, inner, h), "ffn_up_exps": (n, inner, h), "ffn_down_exps": (n, h, inner),
    }  # fmt: skip
    for index in range(args.layers):
        for name, shape in layer.items():
            yield f"blk.{index}.{name}.weight", shape


def _packed(random: np.random.Generator, form: GGMLQuantizationType, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of bytes: small numbers of either sign, with one scale for 32 of them where the form has scales."""
    rows, width = shape[-2:]
    if form is GGMLQuantizationType.BF16:
        floats = random.standard_normal((rows, width), np.float32) * width**-0.5
        one = (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        size = 32 if form is GGMLQuantizationType.Q8_0 else 16
        numbers = random.integers(0, 256, (rows, width // 32, size), dtype=np.uint8)
        levels = 74.0 if size == 32 else 4.6
        scales = np.full((rows, width // 32, 1), width**-0.5 / levels, np.float16).view(np.uint8)
        one = np.concatenate((scales, numbers), axis=-1).reshape(rows, -1)
    return one if len(shape) == 2 else np.broadcast_to(one, (shape[0], *one.shape)).copy()
