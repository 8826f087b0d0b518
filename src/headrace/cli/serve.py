"""``headrace serve``: an OpenAI-compatible HTTP server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from headrace.cli import console
from headrace.cli.options import with_engine_options
from headrace.cli.start import launched
from headrace.core.clock import SystemClock
from headrace.core.errors import ConfigError

DEFAULT_QUEUE = 1024
"""Requests that may wait; without a limit a server under load answers everybody too late."""


@with_engine_options
def serve(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option("--served-model-name", "--served_model_name", help="Its name in the API.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="HEADRACE_API_KEY", help="Ask for this key; may be given several times."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "--extra_llm_api_options", help="YAML file of LLM arguments; options go before it."),
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
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings.")] = False,
    engine: dict[str, Any],
) -> None:
    """Serve a model over HTTP: completions, chat, statistics. SIGTERM ends it gently."""
    arguments = merged(_read(config), engine)
    arguments = merged({"scheduler_config": {"max_queue_size": DEFAULT_QUEUE}}, arguments)
    clock = SystemClock()
    with launched(model, arguments, heartbeat_limit, quiet=quiet, clock=clock) as (running, args):
        from headrace.serve.engine import FrontedEngine
        from headrace.serve.options import ServeOptions
        from headrace.serve.server import Server
        from headrace.serve.serving import Serving

        options = ServeOptions(
            model_name=served_model_name or Path(model).name,
            host=host,
            port=port,
            api_keys=tuple(api_key or ()),
            max_body_bytes=max_body_mib << 20,
            request_timeout=request_timeout,
            drain_limit=drain_limit,
            heartbeat_limit=heartbeat_limit,
        )
        try:
            server = Server(Serving(FrontedEngine(running, args, clock, heartbeat_limit), options))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        status = server.run(lambda: console.note(f"{options.model_name} is served at {server.url}"))
    raise typer.Exit(status)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, group by group."""
    result = dict(below)
    for name, value in above.items():
        base = result.get(name)
        if isinstance(base, Mapping) and isinstance(value, Mapping):
            value = merged(base, value)
        result[name] = value
    return result


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"--config {file}: expected a mapping of LLM arguments, found a {type(content).__name__}")
    return content
