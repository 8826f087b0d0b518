"""Options that several commands share: of the engine, and of sampling (one for each field of ``SamplingParams``)."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from headrace.cli.settings import gather, parse_yaml
from headrace.core.errors import ConfigError, RequestError
from headrace.core.features import MISSING_SAMPLING
from headrace.core.sampling_params import SamplingParams, Width

DEFAULT_MODEL = "smollm2"
_ENGINE = "Engine"
_SAMPLING = "Sampling"

# Fields that say what a Python caller gets back, or that the commands set themselves.
_NOT_IN_A_TERMINAL = {
    "add_special_tokens",
    "apply_batched_logits_processor",
    "detokenize",
    "exclude_input_from_output",
    "logits_processor",
    "pad_id",
    "return_perf_metrics",
    "spaces_between_special_tokens",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How a field is typed on the command line, and how the text becomes its value."""

    annotation: Any
    metavar: str
    parse: Callable[[Any], Any]


def _as_it_is(value: Any) -> Any:
    return value


_KINDS: dict[Any, Kind] = {
    tuple[Width, ...]: Kind(list[int] | None, "N", tuple),
    bool: Kind(bool | None, "", _as_it_is),
    int: Kind(int | None, "N", _as_it_is),
    float: Kind(float | None, "X", _as_it_is),
    tuple[str, ...]: Kind(list[str] | None, "TEXT", tuple),
    tuple[int, ...]: Kind(list[int] | None, "ID", tuple),
}
_YAML_KIND = Kind(str | None, "YAML", parse_yaml)


def _kind(annotation: Any) -> Kind:
    """The kind of a field's type: None in a union and limits in ``Annotated`` do not matter here."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        (annotation,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        return Kind(str | None, "|".join(typing.get_args(annotation)), _as_it_is)
    return _KINDS.get(annotation, _YAML_KIND)


def sampling_fields() -> dict[str, Kind]:
    """The fields of ``SamplingParams`` that the command line offers, in their order."""
    hidden = _NOT_IN_A_TERMINAL | {row.option for row in MISSING_SAMPLING}
    return {name: _kind(field.annotation) for name, field in SamplingParams.model_fields.items() if name not in hidden}


def with_sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives ``command`` one option for each sampling field; it gets those that were set as the dict ``sampling``."""
    kinds = sampling_fields()
    added = []
    for name, kind in kinds.items():
        field = SamplingParams.model_fields[name]
        option = typer.Option(
            _flag(name, field.default),
            metavar=kind.metavar or None,
            help=" ".join((field.description or "").replace("``", "").split()),
            rich_help_panel=_SAMPLING,
            show_default=False,
        )
        added.append(_parameter(name, kind.annotation, option))

    def run(**options: Any) -> Any:
        given = {name: options.pop(name) for name in kinds}
        sampling = {name: kinds[name].parse(value) for name, value in given.items() if value not in (None, [])}
        return command(**options, sampling=sampling)

    return with_parameters(run, command, "sampling", added)


def _flag(name: str, default: Any) -> str:
    """``--top-k`` for top_k. A switch that is on by default gets the flag that turns it off, and no other."""
    words = name.replace("_", "-")
    return f" /--no-{words}" if default is True else f"--{words}"


def with_engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives ``command`` the options of the engine; it gets ``engine``, the keyword arguments of ``LLM``."""
    template = inspect.signature(_engine_options, eval_str=True)

    def run(**options: Any) -> Any:
        engine = _engine_options(**{name: options.pop(name) for name in template.parameters})
        return command(**options, engine=engine)

    return with_parameters(run, command, "engine", list(template.parameters.values()))


def _engine(*flags: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=_ENGINE)


def _engine_options(
    dtype: Annotated[str | None, _engine(help="auto, float32, bfloat16 or float16.")] = None,
    quantization: Annotated[str | None, _engine(help="int8, int4, gguf, or none: see docs/quantisation.md.")] = None,
    max_batch_size: Annotated[int | None, _engine(help="Sequences that run at once.")] = None,
    max_num_tokens: Annotated[int | None, _engine(help="Rows of one step (512).")] = None,
    max_beam_width: Annotated[int | None, _engine(help="Most beams of a request.")] = None,
    max_seq_len: Annotated[int | None, _engine(help="Prompt and output together.")] = None,
    kv_tokens: Annotated[int | None, _engine(help="Tokens the KV cache holds.")] = None,
    threads: Annotated[int | None, _engine(help="Compute threads.")] = None,
    kv_cache_dtype: Annotated[
        str | None, _engine(help="auto (as --dtype), float32, bfloat16, float16, int8 or fp8.")
    ] = None,
    enable_chunked_prefill: Annotated[bool | None, _engine(help="Long prompts in pieces (on).")] = None,
    speculative: Annotated[
        str | None, _engine(help="Draft tokens with: auto, ngram, suffix, draft-model, eagle3 or mtp.")
    ] = None,
    draft_model: Annotated[str | None, _engine(help="The model or head that drafts.")] = None,
    draft_len: Annotated[int | None, _engine(help="Most draft tokens a step (4).")] = None,
    build_cache: Annotated[
        bool | None, _engine("--build-cache", help="Keep packed weights on disk for the next start.")
    ] = None,
    tokenizer: Annotated[str | None, _engine(help="Folder or hub id; else the model's own.")] = None,
    revision: Annotated[str | None, _engine(help="Revision of the model on the hub.")] = None,
    config: Annotated[
        Path | None,
        _engine("--config", "--extra-llm-api-options", metavar="FILE", help="YAML of LLM arguments; options go first."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        _engine("--set", metavar="PATH=VALUE", help="Any argument of LLM: --set scheduler_config.max_queue_size=8."),
    ] = None,
) -> dict[str, Any]:
    """The keyword arguments of ``LLM`` that these options stand for: the file, options over it, ``--set`` over both."""
    plain = {
        "dtype": dtype,
        "max_batch_size": max_batch_size,
        "max_num_tokens": max_num_tokens,
        "max_beam_width": max_beam_width,
        "max_seq_len": max_seq_len,
        "num_threads": threads,
        "enable_chunked_prefill": enable_chunked_prefill,
        "enable_build_cache": build_cache,
        "tokenizer": tokenizer,
        "revision": revision,
    }
    arguments: dict[str, Any] = {name: value for name, value in plain.items() if value is not None}
    cache = {name: value for name, value in (("max_tokens", kv_tokens), ("dtype", kv_cache_dtype)) if value is not None}
    if cache:
        arguments["kv_cache_config"] = cache
    if quantization is not None:
        arguments["quant_config"] = {"quant_algo": quantization}
    arguments |= _drafting(speculative, draft_model, draft_len)
    return gather(config, arguments, settings or ())


_DRAFTING = {
    "auto": "AUTO",
    "ngram": "NGram",
    "suffix": "SA",
    "draft-model": "Draft_Target",
    "eagle3": "Eagle",
    "mtp": "MTP",
}
_BY_MODEL = ("draft-model", "eagle3")


def _drafting(speculative: str | None, draft_model: str | None, draft_len: int | None) -> dict[str, Any]:
    if draft_model is not None and speculative is None:
        speculative = "draft-model"
    if speculative is None:
        if draft_len is not None:
            raise ConfigError("--draft-len goes with --speculative; or --set speculative_config.max_draft_len=N")
        return {}
    if speculative not in _DRAFTING:
        raise ConfigError(f"--speculative {speculative}: there are {', '.join(_DRAFTING)}")
    needs = speculative in _BY_MODEL
    if speculative not in ("auto", "mtp") and needs != (draft_model is not None):
        raise ConfigError(
            "--draft-model PATH names what drafts: it goes with --speculative draft-model or eagle3, which need it, and"
            " with auto and mtp; without it, mtp is the model's own layer"
        )
    config: dict[str, Any] = {
        "decoding_type": _DRAFTING[speculative],
        "max_draft_len": 4 if draft_len is None else draft_len,
    }
    if draft_model is not None:
        config["speculative_model"] = draft_model
    return {"speculative_config": config}


def sampling_params(given: Mapping[str, Any], **defaults: Any) -> SamplingParams:
    """``SamplingParams`` of the options that were given, over ``defaults``. Raises ``RequestError``."""
    return SamplingParams(**{**defaults, **given})


def split_model(words: Sequence[str], model: str | None) -> tuple[str, list[str]]:
    """(model, prompts). Without ``--model`` the first word is the model; one that holds a space is a prompt already."""
    if model is not None:
        return model, list(words)
    if words and not any(letter.isspace() for letter in words[0]):
        return words[0], list(words[1:])
    return DEFAULT_MODEL, list(words)


def require(condition: bool, message: str) -> None:
    """Raises ``RequestError`` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise RequestError(message)


def _parameter(name: str, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def with_parameters(
    run: Callable[..., Any], command: Callable[..., Any], replaced: str | None, added: list[inspect.Parameter]
) -> Callable[..., Any]:
    """``run`` with the name, text and signature of ``command``, its parameter ``replaced`` giving way to ``added``."""
    own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != replaced]
    keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *added)]
    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in keyword}
    return run
