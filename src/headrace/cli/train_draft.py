"""``headrace train-draft``: an EAGLE-3 head for a model, trained on what the model itself says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from headrace.cli import console
from headrace.core.errors import ConfigError


class _Bars:
    """A bar for each part."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def stage(self, what: str, total: float) -> None:
        self.close()
        shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm(total=total, desc=what, bar_format=shape)

    def advance(self, to: float, note: str = "") -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(to - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def train_draft(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")],
    *,
    data: Annotated[Path, typer.Option(help="Prompts, a line each or JSON lines; or a folder of saved states.")],
    out: Annotated[Path, typer.Option(help="Folder for the head.")],
    draft_vocab: Annotated[int, typer.Option(min=16, help="Tokens that the head can guess.")] = 4096,
    draft_len: Annotated[int, typer.Option(min=1, max=16, help="Drafts of a step that it is trained for.")] = 4,
    minutes: Annotated[float, typer.Option(min=0.01, help="Training ends after this time at the latest.")] = 45.0,
    epochs: Annotated[int, typer.Option(min=1, help="Times that it sees every conversation.")] = 8,
    rate: Annotated[float, typer.Option(min=1e-6, max=0.1, help="Highest learning rate.")] = 7e-4,
    max_tokens: Annotated[int, typer.Option(min=16, help="Of a conversation; what is longer is cut.")] = 320,
    answer_tokens: Annotated[int, typer.Option(min=8, help="Most tokens of an answer.")] = 224,
    quantization: Annotated[
        str, typer.Option(help="none, int8, or gguf: how the model that teaches is kept.")
    ] = "none",
    save_answers: Annotated[
        Path | None, typer.Option(help="JSON lines for the model's answers; --data takes it.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Train a draft head (EAGLE-3) on a model's own answers, and measure it on some that it has not seen."""
    import gc

    gc.enable()  # the command's entry keeps all that a start makes; this one goes on for long
    from headrace.llm import LLM  # first: it tells OpenMP how to wait  # noqa: I001
    import torch

    from headrace.core.cgroup import usable_cpus
    from headrace.train.conversations import answered, read_data, write_answers
    from headrace.train.lessons import Conversation
    from headrace.train.recipe import train_head
    from headrace.train.trainer import Settings
    from headrace.weights.resolve import resolve_model

    modes = {"none": "bfloat16", "int8": "int8-bfloat16", "gguf": "gguf-bfloat16"}
    if quantization not in modes:
        raise ConfigError(f"--quantization {quantization}: there are {', '.join(modes)}")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: there is something already; give a new folder")
    entries, bars = read_data(data), _Bars()
    path = resolve_model(model, on_note=console.note).path
    conversations = [one for one in entries if isinstance(one, Conversation)]
    if len(conversations) < len(entries):
        kept = {} if quantization == "none" else {"quant_config": {"quant_algo": quantization}}
        bars.stage("answers", len(entries))
        n_done = 0

        def on_answers(new: list[Conversation]) -> None:
            nonlocal n_done
            n_done += len(new)
            bars.advance(n_done)
            if save_answers is not None:
                write_answers(save_answers, new)

        room = min(max_tokens, 512) + answer_tokens
        with LLM(path, dtype="bfloat16", max_seq_len=room, num_threads=threads, **kept) as llm:
            conversations = answered(llm, entries, answer_tokens, seed, on_answers)
    torch.set_num_threads(threads or usable_cpus())
    settings = Settings(n_steps=draft_len, epochs=epochs, seconds=60.0 * minutes, rate=rate, seed=seed)
    trained = train_head(
        path, conversations, out, draft_vocab=draft_vocab, mode=modes[quantization], max_tokens=max_tokens,
        settings=settings, reporter=bars,
    )  # fmt: skip
    bars.close()
    if json:
        console.print_json(dataclasses.asdict(trained) | {"folder": str(trained.folder)})
        return
    table = console.table("drafts", "tokens a step", title=f"{trained.n_held} held-out conversations")
    for drafts, tokens in enumerate(trained.tokens_per_step):
        table.add_row(str(drafts), f"{tokens:.2f}")
    console.out().print(table)
    console.note(
        f"{trained.folder}: learnt from {trained.n_lessons} conversations of {trained.n_tokens} tokens; its vocabulary"
        f" has {trained.coverage:.1%} of the tokens of answers."
        f" Use it: --speculative eagle3 --draft-model {trained.folder}"
    )
