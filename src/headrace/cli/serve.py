"""``headrace serve``: an OpenAI-compatible HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli import console
from headrace.cli.absent import with_absent_flags
from headrace.cli.options import with_engine_options
from headrace.cli.settings import merged
from headrace.cli.start import launched
from headrace.core.clock import SystemClock
from headrace.core.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from headrace.serve.server import Server
    from headrace.serve.serving import Serving
    from headrace.tokenizer.tokenizer import Tokenizer

DEFAULT_QUEUE = 1024
"""Requests that may wait; without a limit a server under load answers everybody too late."""
DEFAULT_RECORDS = 1000


@with_absent_flags
@with_engine_options
def serve(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="Its name in the API; else the last part of MODEL.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="HEADRACE_API_KEY", help="Ask for this key; may be given several times."),
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="Jinja template in place of the model's own.")
    ] = None,
    reasoning_parser: Annotated[
        str | None, typer.Option(help="Thinking apart from answers: auto, deepseek-r1, nano-v3, qwen3, magistral.")
    ] = None,
    logits_processor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODULE:OBJECT", help="A processor that requests may name; repeatable."),
    ] = None,
    batched_logits_processor: Annotated[
        str | None, typer.Option(metavar="MODULE:OBJECT", help="The processor of all requests that ask for it.")
    ] = None,
    lora_modules: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="An adapter that requests may name as the model; repeatable."),
    ] = None,
    max_body_mib: Annotated[int, typer.Option(min=1, max=1024, help="Largest body of a request, in MiB.")] = 8,
    request_timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="S", help="Seconds a request may take.")
    ] = None,
    drain_limit: Annotated[
        float, typer.Option(min=0.0, metavar="S", help="Seconds that requests may go on after SIGTERM.")
    ] = 30.0,
    heartbeat_limit: Annotated[
        float,
        typer.Option(min=0.1, metavar="S", help="Seconds a step may take; then the engine counts as stuck."),
    ] = 300.0,
    perf_metrics_max_requests: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Records that /perf_metrics keeps (1000).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings.")] = False,
    engine: dict[str, Any],
) -> None:
    """Serve a model over HTTP: completions, chat, statistics. SIGTERM ends it gently."""
    arguments = merged({"scheduler_config": {"max_queue_size": DEFAULT_QUEUE}}, engine)
    arguments = merged(arguments, _more(reasoning_parser, batched_logits_processor, logits_processor, lora_modules))
    records = _records(perf_metrics_max_requests, arguments.pop("perf_metrics_max_requests", None))
    if any(not key.strip() for key in api_key or ()):
        raise ConfigError("--api-key: an empty key would let everybody in; give one with letters, or none")
    template = None if chat_template is None else _template(chat_template)
    clock = SystemClock()
    with launched(
        model, arguments, heartbeat_limit, ctx.find_root().obj, meanwhile=_import_server, quiet=quiet, clock=clock
    ) as (running, args):
        if template is not None:
            _use(template, running.tokenizer)
        from headrace.serve.engine import FrontedEngine
        from headrace.serve.options import ServeOptions
        from headrace.serve.serving import Serving

        options = ServeOptions(
            model_name=served_model_name or Path(model).name,
            host=host,
            port=port,
            api_keys=tuple(api_key or ()),
            max_body_bytes=max_body_mib << 20,
            request_timeout=request_timeout,
            perf_metrics_max_requests=records,
            drain_limit=drain_limit,
            heartbeat_limit=heartbeat_limit,
        )
        server = _listening(Serving(FrontedEngine(running, args, clock, heartbeat_limit), options))
        status = server.run(lambda: console.note(f"{options.model_name} is served at {server.url}"))
    raise typer.Exit(status)


def _more(
    parser: str | None, batched: str | None, processors: list[str] | None, adapters: list[str] | None
) -> dict[str, Any]:
    """Arguments of ``LLM`` whose flags only this command has."""
    given = {"reasoning_parser": parser, "batched_logits_processor": batched}
    return {
        **{name: value for name, value in given.items() if value is not None},
        **_named("--logits-processor", "module:object", processors, "logits_processors"),
        **_named("--lora-modules", "folder", adapters, "lora_config", "lora_modules"),
    }


def _named(flag: str, what: str, given: list[str] | None, *path: str) -> dict[str, Any]:
    """Values with names, ``NAME=value`` each, as the argument of ``LLM`` at ``path``."""
    named: dict[str, Any] = {}
    for one in given or ():
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{flag} {one}: write it as NAME={what}")
        if name in named:
            raise ConfigError(f"{flag}: {name!r} is given twice; each has a name of its own")
        named[name] = value
    for part in reversed(path):
        named = {part: named}
    return named if given else {}


def _listening(serving: Serving) -> Server:
    from headrace.serve.server import Server

    try:
        return Server(serving)
    except OSError as error:
        where = f"{serving.options.host}:{serving.options.port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None


def _import_server() -> None:
    from headrace.serve import server  # noqa: F401


def _template(given: str) -> str:
    """Jinja source: the text of a file, or what was given if it is no file's name."""
    if "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {given}: {error}; give a file or the text of a template") from None


def _use(template: str, tokenizer: Tokenizer | None) -> None:
    if tokenizer is None:
        raise ConfigError("--chat-template: the model was loaded without a tokenizer; leave it out")
    try:
        tokenizer.use_chat_template(template)
    except RequestError as error:
        raise ConfigError(f"--chat-template: {error}") from None


def _records(flag: int | None, setting: Any) -> int:
    """How many records to keep. In TensorRT-LLM's files the setting stands among the arguments of ``LLM``."""
    value = flag if flag is not None else setting
    if value is None:
        return DEFAULT_RECORDS
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"perf_metrics_max_requests={value!r}: give a number from 0 on")
    return value
