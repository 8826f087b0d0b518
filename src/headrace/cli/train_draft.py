"""``headrace train-draft``: a draft head for a model, trained on what the model itself says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from headrace.cli import console
from headrace.core.errors import ConfigError

if TYPE_CHECKING:
    from headrace.llm import LLM
    from headrace.train.conversations import Entry
    from headrace.train.lessons import Conversation
    from headrace.train.recipe import Trained


_MODES = {"none": "bfloat16", "int8": "int8-bfloat16", "gguf": "gguf-bfloat16"}
"""How the model that teaches is kept -> how it runs over the conversations."""


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


def _answered(
    llm: LLM, entries: Sequence[Entry], answer_tokens: int, seed: int, save_answers: Path | None, bars: _Bars
) -> list[Conversation]:
    """Answers are saved as they come."""
    from headrace.train.conversations import answered, write_answers

    n_done = 0
    bars.stage("answers", len(entries))

    def on_answers(new: Sequence[Conversation]) -> None:
        nonlocal n_done
        n_done += len(new)
        bars.advance(n_done)
        if save_answers is not None:
            write_answers(save_answers, new)

    return answered(llm, entries, answer_tokens, seed, on_answers)


def train_draft(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the head.")],
    kind: Annotated[str, typer.Option(help="eagle3, or mtp: a layer before the model's own head.")] = "eagle3",
    data: Annotated[
        Path | None, typer.Option(help="Prompts, a line each or JSON lines; or a folder of saved states.")
    ] = None,
    own_prompts: Annotated[int, typer.Option(min=0, help="So many prompts that the model makes up itself.")] = 0,
    draft_vocab: Annotated[
        int, typer.Option(min=16, help="Tokens that the head can guess; of mtp: that it learns from.")
    ] = 4096,
    draft_len: Annotated[int, typer.Option(min=1, max=16, help="Drafts of a step that it is trained for.")] = 4,
    minutes: Annotated[float, typer.Option(min=0.01, help="Training ends after this time at the latest.")] = 45.0,
    epochs: Annotated[int, typer.Option(min=1, help="Times that it sees every conversation.")] = 4,
    rate: Annotated[float, typer.Option(min=1e-6, max=0.1, help="Highest learning rate.")] = 8e-4,
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
    """Train a draft head (EAGLE-3 or MTP) on a model's own answers, and measure it on some that it has not seen."""
    import gc

    gc.enable()  # the command's entry keeps all that a start makes; this one goes on for long
    from headrace.llm import LLM  # first: it tells OpenMP how to wait  # noqa: I001
    import torch

    from headrace.core.cgroup import usable_cpus
    from headrace.ops.native import core
    from headrace.train.conversations import made_up, read_data
    from headrace.train.kinds import KINDS
    from headrace.train.lessons import Conversation
    from headrace.train.recipe import train_head
    from headrace.train.trainer import Settings
    from headrace.weights.resolve import resolve_model

    for option, value, known in (("quantization", quantization, _MODES), ("kind", kind, KINDS)):
        if value not in known:
            raise ConfigError(f"--{option} {value}: there are {', '.join(known)}")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: there is something already; give a new folder")
    if data is None and not own_prompts:
        raise ConfigError("there is nothing to learn from: give --data, --own-prompts, or both")
    entries: Sequence[Entry] = [] if data is None else read_data(data)
    path, bars = resolve_model(model, on_note=console.note).path, _Bars()
    if own_prompts or not all(isinstance(one, Conversation) for one in entries):
        kept = {} if quantization == "none" else {"quant_config": {"quant_algo": quantization}}
        room = min(max_tokens, 512) + answer_tokens
        with LLM(path, dtype="bfloat16", max_seq_len=room, num_threads=threads, **kept) as llm:
            if own_prompts:
                bars.stage("prompts", own_prompts)
                entries = [*entries, *made_up(llm, own_prompts, seed, bars.advance)]
            entries = _answered(llm, entries, answer_tokens, seed, save_answers, bars)
    conversations = [one for one in entries if isinstance(one, Conversation)]
    core.set_threads(threads or usable_cpus())
    torch.set_num_threads(threads or usable_cpus())
    settings = Settings(n_steps=draft_len, epochs=epochs, seconds=60.0 * minutes, rate=rate, seed=seed)
    trained = train_head(
        path, conversations, out, kind=kind, draft_vocab=draft_vocab, mode=_MODES[quantization],
        max_tokens=max_tokens, settings=settings, reporter=bars,
    )  # fmt: skip
    bars.close()
    _show(trained, kind, as_json=json)


def _show(trained: Trained, kind: str, *, as_json: bool) -> None:
    if as_json:
        console.print_json(dataclasses.asdict(trained) | {"folder": str(trained.folder)})
        return
    table = console.table("drafts", "tokens a step", title=f"{trained.n_held} held-out conversations")
    for drafts, tokens in enumerate(trained.tokens_per_step):
        table.add_row(str(drafts), f"{tokens:.2f}")
    console.out().print(table)
    console.note(
        f"{trained.folder}: learnt from {trained.n_lessons} conversations of {trained.n_tokens} tokens; its vocabulary"
        f" has {trained.coverage:.1%} of the tokens of answers."
        f" Use it: --speculative {kind} --draft-model {trained.folder}"
    )
