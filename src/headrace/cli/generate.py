"""``headrace generate``: answers to one or several prompts, generated together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli import console
from headrace.cli.options import sampling_params, split_model, with_engine_options, with_sampling_options
from headrace.cli.prompts import read_prompts, render
from headrace.cli.start import is_terminal, started
from headrace.cli.streams import JsonView, LiveView, PlainView, Stream, View, follow, summary
from headrace.core.clock import Clock, SystemClock

DEFAULT_MAX_TOKENS = 256
"""A terminal has room for more than the 32 of ``SamplingParams``."""


@with_engine_options
@with_sampling_options
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL PROMPT", help="Model, then prompts; the model may be left out."),
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Built-in name, folder, .gguf file or hub id. Default: smollm2."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="One prompt a line, or .jsonl with prompt or messages; - is stdin.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="Through the chat template, or as it is. Default: the template, if any."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    stream: Annotated[bool, typer.Option(help="Show text as it comes.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON line for each prompt.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the answers.")] = False,
    sampling: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Generate from one or several prompts; several run together."""
    name, texts = split_model(words or [], model)
    prompts = read_prompts(texts, prompt_file)
    clock = SystemClock()
    # Checked before the model is loaded: a wrong option should not cost a load.
    sampling_params(sampling, max_tokens=DEFAULT_MAX_TOKENS)
    with started(name, engine, quiet=quiet, clock=clock) as llm:
        streams = []
        for prompt in prompts:
            ready = render(prompt, llm.tokenizer, chat=chat, system=system)
            params = sampling_params(
                sampling, max_tokens=DEFAULT_MAX_TOKENS, add_special_tokens=ready.add_special_tokens
            )
            now = clock.now()
            streams.append(Stream(ready.shown, llm.generate_async(ready.text, params, streaming=True), now))
        _show(streams, clock, as_json=json, stream=stream)
        if not quiet:
            console.note(summary(streams))
    for one in streams:
        if one.error is not None and not json:
            console.error(f"{one.prompt[:60]!r}: {one.error}")
    if any(one.error for one in streams):
        raise typer.Exit(2)


def _show(streams: list[Stream], clock: Clock, *, as_json: bool, stream: bool) -> None:
    view: View
    if as_json:
        view = JsonView(sys.stdout)
    elif is_terminal() and stream and sum(len(one.output.outputs) for one in streams) > 1:
        view = LiveView(streams, console.out())
    else:
        view = PlainView(streams, sys.stdout, live=stream)
    follow(streams, view, clock)
