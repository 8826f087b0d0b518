"""Flags that people know from TensorRT-LLM's trtllm-serve and that are not here: each is refused with the way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from headrace.cli.options import with_parameters
from headrace.core.errors import ConfigError

_LATER = "not in this version"
_RANKS = f"more than one rank is {_LATER}; more CPUs: --threads"
_DISAGGREGATED = f"disaggregated serving is {_LATER}"
_TEXT_ONLY = f"the models served read text only; media are {_LATER}"
_ONE_FRONT = "there is one HTTP process; tokenising runs beside its event loop"


@dataclass(frozen=True, slots=True)
class Absent:
    """``neutral``: values that ask for nothing, and are taken. ``is_switch``: the flag has no value."""

    flag: str
    reason: str
    neutral: tuple[str, ...] = ()
    is_switch: bool = False
    also: tuple[str, ...] = ()
    """Other names."""


FLAGS = (
    Absent("--backend", "there is one backend; leave it out", ("pytorch",)),
    Absent("--custom-tokenizer", "no code is loaded from outside; --tokenizer takes a folder or a hub id"),
    Absent("--tp-size", _RANKS, ("1",)),
    Absent("--pp-size", _RANKS, ("1",)),
    Absent("--cp-size", _RANKS, ("1",)),
    Absent("--ep-size", _RANKS, ("1",)),
    Absent("--cluster-size", _RANKS, ("1",)),
    Absent("--gpus-per-node", "this runs on CPUs; leave it out"),
    Absent(
        "--kv-cache-free-gpu-memory-fraction",
        "there is no GPU memory to share out: give the cache's size with --kv-tokens, or leave it out for as much as"
        " the settings need",
        also=("--free-gpu-memory-fraction",),
    ),
    Absent("--num-postprocess-workers", _ONE_FRONT, ("0",)),
    Absent("--num-serve-frontends", _ONE_FRONT, ("1",)),
    Absent("--num-input-processor-workers", _ONE_FRONT),
    Absent("--num-media-load-workers", _TEXT_ONLY),
    Absent("--media-io-kwargs", _TEXT_ONLY),
    Absent("--trust-remote-code", "no code that comes with a checkpoint is ever run", is_switch=True),
    Absent("--tool-parser", f"tool calls are {_LATER}"),
    Absent("--metadata-server-config-file", _DISAGGREGATED),
    Absent("--server-role", _DISAGGREGATED),
    Absent("--disagg-cluster-uri", _DISAGGREGATED),
    Absent(
        "--fail-fast-on-attention-window-too-large",
        "windows come with the model and always fit: a request that cannot is refused",
        is_switch=True,
    ),
    Absent("--enable-attention-dp", f"attention data parallelism is {_LATER}", is_switch=True),
    Absent("--otlp-traces-endpoint", f"traces are {_LATER}; see /perf_metrics and /prometheus/metrics"),
    Absent("--middleware", "no code is loaded from outside; put a proxy in front"),
    Absent("--grpc", f"gRPC is {_LATER}; HTTP is there", is_switch=True),
    Absent("--generation-config", "a request says how it is sampled; what it leaves out has the API's defaults"),
    Absent("--telemetry", "nothing is ever reported to anybody", is_switch=True),
    Absent("--log-level", "use --quiet for warnings only", ("info",)),
    Absent("--extra-visual-gen-options", "images and videos are not generated here"),
)


def with_absent_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives ``command`` the flags of the table, hidden from its help."""
    rows = {_name(row): row for row in FLAGS}

    def run(**options: Any) -> Any:
        for name, row in rows.items():
            _refuse(row, options.pop(name))
        return command(**options)

    return with_parameters(run, command, None, [_parameter(name, row) for name, row in rows.items()])


def _name(row: Absent) -> str:
    return row.flag.removeprefix("--").replace("-", "_")


def _parameter(name: str, row: Absent) -> inspect.Parameter:
    kind = bool if row.is_switch else str | None
    # A switch that is turned off asks for nothing either.
    flags = [f"{row.flag}/--no-{row.flag.removeprefix('--')}"] if row.is_switch else [row.flag, *row.also]
    option = typer.Option(*flags, hidden=True)
    default = False if row.is_switch else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _refuse(row: Absent, value: Any) -> None:
    """Raises ``ConfigError`` if the flag asks for something."""
    if value in (None, False, *row.neutral):
        return
    given = row.flag if row.is_switch else f"{row.flag} {value}"
    raise ConfigError(f"{given}: {row.reason}")
