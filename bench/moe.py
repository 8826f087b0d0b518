"""Decoding of a random Qwen3-MoE-shaped model, next to the time of reading what it has to read.

    python bench/moe.py [--quant int8] [--peer] [--llamacpp FOLDER --gguf FILE] [--layers 24] [--experts 64] ...

A step reads all weights but the embedding's table, and of the experts those that its rows are sent to: for one row
that is `top` of `experts` in every layer; for more, the mean number of different experts under a uniform choice, since
the random router has no favourites. `read` is the time of reading as many bytes of the machine's memory with the same
threads, measured in between, over the time of a step. The best of the rounds counts on both sides: on a machine with
other work, single rounds say little. With `--peer` a transformers model of the same shape decodes in the same rounds,
in bfloat16, with as many threads and its default ways: take few layers, for both are in memory. With `--llamacpp` the
`llama-batched-bench` of that folder does, on a GGUF file of the same shape and bits (`--gguf`, which is kept).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from headrace import LLM, SamplingParams
from headrace.core.cgroup import usable_cpus
from headrace.ops.memory import huge_zeros
from headrace.ops.native import core

READ_BYTES = 512 << 20


def configuration(args: argparse.Namespace) -> dict[str, object]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": args.vocabulary,
        "hidden_size": args.hidden,
        "intermediate_size": 4 * args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 64,
        "num_key_value_heads": max(1, args.hidden // 256),
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "num_experts": args.experts,
        "num_experts_per_tok": args.top,
        "moe_intermediate_size": args.inner,
        "norm_topk_prob": True,
    }


BYTES = {None: 2.0, "int8": 34 / 32, "int4": 18 / 32}
"""Of a weight by ``--quant``, scales included; tables are never in less than 8 bits."""


def step_bytes(args: argparse.Namespace, all_weights: int, batch: int) -> float:
    """Of weights."""
    experts = BYTES[args.quant] * args.layers * args.experts * 3 * args.inner * args.hidden
    table = BYTES[args.quant and "int8"] * args.vocabulary * args.hidden
    different = 1 - (1 - args.top / args.experts) ** batch
    return all_weights - table - experts + experts * different


class Machine:
    """How fast its memory is read."""

    def __init__(self) -> None:
        self._memory = huge_zeros(READ_BYTES)
        self._memory.fill_(1)

    def seconds_a_byte(self) -> float:
        start = time.perf_counter()
        core.native().read_all(self._memory.data_ptr(), READ_BYTES)
        return (time.perf_counter() - start) / READ_BYTES


def seconds_a_step(llm: LLM, batch: int, tokens: int) -> float:
    """Decode steps alone: the time of a longer answer less that of a short one."""
    prompts = [[(7 * i + j) % 1000 for j in range(16)] for i in range(batch)]

    def run(n: int) -> float:
        params = SamplingParams(max_tokens=n, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    return (run(tokens + 2) - run(2)) / tokens


class Peer:
    """The same with transformers."""

    def __init__(self, config: dict[str, object], threads: int) -> None:
        import torch
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        self._torch, self._threads = torch, threads
        with torch.device("meta"):
            model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config, dtype="bfloat16")).bfloat16()
        self._model = model.to_empty(device="cpu").eval().requires_grad_(False)
        self._model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        for parameter in self._model.parameters():
            parameter.uniform_(-0.03, 0.03)

    def seconds_a_step(self, batch: int, tokens: int) -> float:
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(self._threads)
        try:
            out = self._model(self._torch.arange(16 * batch).view(batch, 16), use_cache=True)
            start = time.perf_counter()
            for _ in range(tokens):
                next_ids = out.logits[:, -1:].argmax(-1)
                out = self._model(next_ids, past_key_values=out.past_key_values, use_cache=True)
            return (time.perf_counter() - start) / tokens
        finally:
            self._torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("layers", 24), ("experts", 64), ("inner", 512), ("top", 8), ("hidden", 1024), ("vocabulary", 32_000),
        ("tokens", 64), ("rounds", 5), ("threads", usable_cpus()),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--llamacpp", type=Path, help="Folder of llama.cpp's programs.")
    parser.add_argument("--gguf", type=Path, help="Its model, written if it is not there.")
    parser.add_argument("--quant", choices=("int8", "int4"))
    args = parser.parse_args()
    if not core.is_available():
        sys.exit(core.reason())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(configuration(args)))
        quantised = {"quant_config": {"quant_algo": args.quant}} if args.quant else {}
        llm = LLM(model=folder, load_format="dummy", dtype="bfloat16", skip_tokenizer_init=True, max_seq_len=512,
                  max_batch_size=max(args.batch), num_threads=args.threads,
                  kv_cache_config={"enable_block_reuse": False}, **quantised)  # fmt: skip
    weights = dict(llm.memory_report)["weights"]
    machine = Machine()
    peer = Peer(configuration(args), args.threads) if args.peer else None
    llamacpp = None
    if args.llamacpp is not None:
        if args.gguf is None:
            sys.exit("--llamacpp goes with --gguf FILE")
        from moe_llamacpp import LlamaCpp

        llamacpp = LlamaCpp(args.llamacpp / "llama-batched-bench", args.gguf, args)
    for batch in args.batch:
        seconds_a_step(llm, batch, 4)
    print(
        f"level {core.native().level()}, {args.threads} threads, {weights / 1e9:.2f} GB of weights, ready", flush=True
    )
    for batch in args.batch:
        step = read = theirs = cpp = float("inf")
        for _ in range(args.rounds):
            read = min(read, machine.seconds_a_byte())
            step = min(step, seconds_a_step(llm, batch, args.tokens))
            read = min(read, machine.seconds_a_byte())
            if peer is not None:
                theirs = min(theirs, peer.seconds_a_step(batch, args.tokens // 4))
            if llamacpp is not None:
                cpp = min(cpp, llamacpp.seconds_a_step(batch, args.tokens))
        n_bytes = step_bytes(args, weights, batch)
        print(f"batch {batch}: {step * 1e3:.2f} ms a step, {batch / step:.1f} tokens/s, {n_bytes / 1e6:.0f} MB to read,"
              f" memory {1e-9 / read:.1f} GB/s: {n_bytes * read / step:.2f} read")  # fmt: skip
        if peer is not None:
            print(f"  transformers: {theirs * 1e3:.2f} ms a step, {theirs / step:.2f} times as long")
        if llamacpp is not None:
            print(f"  llama.cpp: {cpp * 1e3:.2f} ms a step, {cpp / step:.2f} times as long")
    llm.shutdown()


if __name__ == "__main__":
    main()
