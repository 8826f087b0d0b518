"""What forms of few bits cost, ours and llama.cpp's, from the same weights, by the same measure on the same text.

    python bench/kl_llamacpp.py MODEL.gguf --llamacpp FOLDER --text docs/serving.md docs/sampling.md

``--llamacpp`` is the folder of ``llama-quantize`` and ``llama-perplexity``. The first writes MODEL's values as F32,
and Q8_0 and Q4_0 of these; headrace reads the F32 file and rounds it itself, or keeps the blocks of the other two. The
second gives llama.cpp's log probabilities. Both go over pieces of ``--context`` tokens of the text, cut by llama.cpp;
KL is from headrace's run in float32, at the positions in the second half of each piece, which are those that llama.cpp
writes. It writes 16 bits a token, and e^-16 of the likeliest one for all that is less likely; the same is done to all
rows here. The row of llama.cpp on F32 tells what of a figure is due to that, and to the order of sums.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from headrace.eval.kl import kl
from headrace.eval.text_model import MODES, TextModel
from headrace.ops.native import core
from headrace.weights.gguf_reader import read_header

FORMS = ("F32", "Q8_0", "Q4_0")
OURS = (("int8", "F32"), ("int4", "F32"), ("gguf", "Q8_0"), ("gguf", "Q4_0"))
"""Modes of headrace, and of which file."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Log probabilities of one model over a text."""

    pieces: torch.Tensor
    """[pieces, context] tokens."""
    logprobs: torch.Tensor
    """[pieces, context - 1 - context // 2, vocab] float32: after the tokens of the second half but the last."""


def read_answers(path: Path, first_token: int | None) -> Answers:
    """The file of ``llama-perplexity --save-all-logits``.

    A row of log probabilities is scale and lowest value in float32, then a number of 16 bits for each token of the
    vocabulary, up to an even count. ``first_token`` takes the place of each piece's first.
    """
    data = path.read_bytes()
    if data[:8] != b"_logits_":
        raise RuntimeError(f"{path} is no file of log probabilities")
    context, vocab, n = np.frombuffer(data, np.int32, 3, 8)
    pieces = np.frombuffer(data, np.int32, n * context, 20).reshape(n, context).copy()
    width = vocab + vocab % 2 + 4
    rows = np.frombuffer(data, np.uint16, offset=20 + pieces.nbytes).reshape(n, context - 1 - context // 2, width)
    scales = rows[..., :4].copy().view(np.float32)
    if first_token is not None:
        pieces[:, 0] = first_token
    logprobs = torch.from_numpy(rows[..., 4 : 4 + vocab].astype(np.float32))
    scale, lowest = torch.from_numpy(scales).unbind(-1)
    return Answers(torch.from_numpy(pieces), logprobs * scale[..., None] + lowest[..., None])


class LlamaCpp:
    """Args: folder: of the programs; work: where files go."""

    def __init__(self, folder: Path, work: Path, threads: int) -> None:
        self._folder, self._work, self._threads = folder, work, threads
        for program in ("llama-quantize", "llama-perplexity"):
            if not (folder / program).is_file():
                sys.exit(f"{folder} has no {program}: build llama.cpp, and say where with --llamacpp")

    def quantise(self, source: Path, form: str, *options: str) -> Path:
        target = self._work / f"{form}.gguf"
        self._run("llama-quantize", *options, source, target, form)
        return target

    def answers(self, model: Path, text: Path, context: int, n_pieces: int) -> Answers:
        target = self._work / "logprobs"
        of_cache = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
        sizes = ("-c", context, "-b", context, "--chunks", n_pieces, "-t", self._threads)
        self._run("llama-perplexity", "-m", model, "-f", text, "--save-all-logits", target, *sizes, *of_cache)
        fields = read_header(model).metadata
        begins = fields.get("tokenizer.ggml.add_bos_token", False)
        return read_answers(target, int(fields["tokenizer.ggml.bos_token_id"]) if begins else None)

    def _run(self, program: str, *args: object) -> None:
        done = subprocess.run([self._folder / program, *map(str, args)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} has failed: {done.stderr[-1000:] or done.stdout[-1000:]}")


def ours(path: Path, mode: str, pieces: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of each piece, what ``Answers`` has."""
    model = TextModel(path, MODES[mode], pieces.shape[1])
    for piece in pieces.tolist():
        rows = torch.cat(list(model.logprobs(piece)))
        yield rows[len(piece) // 2 : -1]


def floored(logprobs: torch.Tensor) -> torch.Tensor:
    """[rows, vocab]: what is below e^-16 of the likeliest is that much, and the sum is one again."""
    return torch.maximum(logprobs, logprobs.amax(-1, keepdim=True) - 16).log_softmax(-1)


def row(name: str, file: str, exact: torch.Tensor, got: Iterator[torch.Tensor], pieces: torch.Tensor) -> str:
    divergences, same, likelihoods = [], [], []
    for piece, wanted, other in zip(pieces, map(floored, exact), map(floored, got), strict=True):
        divergences.append(kl(wanted, other))
        same.append(wanted.argmax(1) == other.argmax(1))
        likelihoods.append(other.gather(1, piece[len(piece) // 2 + 1 :, None].long()))
    kls = torch.cat(divergences)
    figures = f"{kls.mean():.2e} | {kls.quantile(0.99):.2e} | {torch.cat(same).double().mean():.1%}"
    return f"| {name} | {figures} | {(-torch.cat(likelihoods).double().mean()).exp():.3f} | {file} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file, in any form")
    parser.add_argument("--llamacpp", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files, one after another")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--pieces", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--pure", action="store_true", help="tables in the form of the rest, which llama.cpp does not by itself"
    )
    args = parser.parse_args()
    core.set_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="headrace-kl-") as work:
        peer = LlamaCpp(args.llamacpp, Path(work), args.threads)
        files = {"F32": peer.quantise(args.model, "F32", "--allow-requantize")}
        for form in FORMS[1:]:
            files[form] = peer.quantise(files["F32"], form, *(["--pure"] if args.pure else []))
        text = Path(work, "text")
        text.write_text("\n".join(part.read_text() for part in args.text))
        print("| | mean KL | 99% of KL | same top token | perplexity | tables, weights |\n|---|---|---|---|---|---|")
        pieces = exact = torch.empty(0)
        for form, file in files.items():
            found = peer.answers(file, text, args.context, args.pieces)
            if form == "F32":
                pieces = found.pieces
                exact = torch.stack(list(ours(file, "float32", pieces)))
            print(row(f"llama.cpp, {form}", forms(file), exact, iter(found.logprobs), pieces), flush=True)
        for mode, form in OURS:
            print(
                row(
                    f"headrace, `{mode}` of {form}", forms(files[form]), exact, ours(files[form], mode, pieces), pieces
                ),
                flush=True,
            )


def forms(file: Path) -> str:
    """Of the tensors that are multiplied: the table's, then the others'."""
    tensors = [(name, found.type.name) for name, found in read_header(file).tensors.items() if len(found.shape) > 1]
    tables = {form for name, form in tensors if name in ("token_embd.weight", "output.weight")}
    rest = {form for name, form in tensors if name.startswith("blk.")}
    return f"{'/'.join(sorted(tables))}, {'/'.join(sorted(rest))}"


if __name__ == "__main__":
    main()
