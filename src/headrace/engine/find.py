"""What an engine needs before it is built: features that go together, the model's files, its tokenizer. No torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from headrace.core.config import LlmArgs
from headrace.core.errors import ConfigError
from headrace.core.features import resolve
from headrace.core.phases import Phases
from headrace.core.reasoning import KNOWN_MARKS, PARSERS, Marks, Reasoning
from headrace.core.speculative import (
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    MTPDecodingConfig,
    NGramDecodingConfig,
    SADecodingConfig,
    SaveHiddenStatesDecodingConfig,
    UserProvidedDecodingConfig,
)
from headrace.media.contract import MediaProcessor
from headrace.media.find import media_processor
from headrace.tokenizer.load import load_tokenizer
from headrace.tokenizer.tokenizer import Tokenizer
from headrace.weights.resolve import resolve_model

log = logging.getLogger("headrace")


def check_features(args: LlmArgs) -> None:
    """Raises ``ConfigError`` if two of the features asked for do not go together."""
    resolve(_active_features(args))


def find_model(args: LlmArgs, phases: Phases) -> Path:
    """Path of the model, fetched if need be. Raises ``ModelError``."""
    with phases.time("find model"):
        return resolve_model(args.model, revision=args.revision, on_note=log.warning).path


def find_tokenizer(args: LlmArgs, model_path: Path, phases: Phases) -> Tokenizer | None:
    """None with ``skip_tokenizer_init``. Raises ``ConfigError`` or ``ModelError``."""
    with phases.time("load tokenizer"):
        return _tokenizer(args, model_path)


def find_media(model_path: Path) -> MediaProcessor | None:
    """None for a model that reads text only. Raises ``ModelError``."""
    return media_processor(model_path)


def find_reasoning(args: LlmArgs, tokenizer: Tokenizer | None) -> Reasoning | None:
    """How outputs think; None without a ``reasoning_parser``. With one its marks are part of the text.

    Raises ``ConfigError``."""
    name = args.reasoning_parser
    if name is None:
        return None
    if tokenizer is None:
        raise ConfigError(f"reasoning_parser={name!r} needs a tokenizer; leave skip_tokenizer_init off")
    marks, starts_inside = (_marks_of(tokenizer), False) if name == "auto" else PARSERS[name]
    ids = [tokenizer.token_to_id(text) for text in (marks.begin, marks.end)]
    if None in ids:
        raise ConfigError(
            f"reasoning_parser={name!r}: the vocabulary has no tokens {marks.begin!r} and {marks.end!r}, so this model"
            " does not mark its thinking so; leave reasoning_parser out, or take another one"
        )
    begin_id, end_id = (int(token) for token in ids if token is not None)
    tokenizer.show((begin_id, end_id))
    blank = {token for text in _BLANK for token in tokenizer.encode(text, add_special_tokens=False)}
    return Reasoning(marks, begin_id, end_id, starts_inside, frozenset(blank))


_BLANK = ("\n", "\n\n", " ", "\n\n\n")


def _marks_of(tokenizer: Tokenizer) -> Marks:
    """Those that stand in the chat template. Raises ``ConfigError``."""
    for marks in KNOWN_MARKS:
        if tokenizer.template_has(marks.end):
            return marks
    known = ", ".join(marks.end for marks in KNOWN_MARKS)
    raise ConfigError(
        f"reasoning_parser='auto': the chat template has none of {known}; leave reasoning_parser out, or name one of"
        f" {', '.join(PARSERS)}"
    )


def _active_features(args: LlmArgs) -> Iterable[str]:
    cache, drafts = args.kv_cache_config, args.speculative_config
    saves = isinstance(drafts, SaveHiddenStatesDecodingConfig)
    reuses = cache.enable_block_reuse and not saves
    switches = {
        "batching": args.max_batch_size > 1,
        "chunked_prefill": args.enable_chunked_prefill,
        "kv_reuse": reuses,
        "partial_reuse": reuses and cache.enable_partial_reuse,
        "lora": args.lora is not None,
        "host_cache": bool(cache.host_cache_size),
        "disk_cache": bool(cache.disk_cache_size),
        "windows": cache.max_attention_window is not None,
        "overlap": not args.disable_overlap_scheduler,
        "ngram": isinstance(drafts, NGramDecodingConfig),
        "suffix": isinstance(drafts, SADecodingConfig),
        "draft_model": isinstance(drafts, DraftTargetDecodingConfig),
        "eagle3": isinstance(drafts, EagleDecodingConfig) and drafts.eagle3_one_model and not drafts.use_dynamic_tree,
        "eagle3_two_model": isinstance(drafts, EagleDecodingConfig) and not drafts.eagle3_one_model,
        "draft_tree": isinstance(drafts, EagleDecodingConfig) and drafts.use_dynamic_tree,
        "save_states": saves,
        "mtp": isinstance(drafts, MTPDecodingConfig),
        "user_drafter": isinstance(drafts, UserProvidedDecodingConfig),
    }
    return (name for name, on in switches.items() if on)


def _tokenizer(args: LlmArgs, model_path: Path) -> Tokenizer | None:
    if args.skip_tokenizer_init:
        return None
    if args.tokenizer is None:
        return load_tokenizer(model_path)
    if isinstance(args.tokenizer, Tokenizer):
        return args.tokenizer
    if isinstance(args.tokenizer, (str, Path)) and Path(args.tokenizer).expanduser().exists():
        return load_tokenizer(Path(args.tokenizer).expanduser())
    if isinstance(args.tokenizer, str):
        return load_tokenizer(resolve_model(args.tokenizer, revision=args.tokenizer_revision).path)
    raise ConfigError(
        f"tokenizer is a {type(args.tokenizer).__name__}; give a folder, a hub id or a headrace Tokenizer"
    )
