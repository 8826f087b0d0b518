"""Starts an engine whose loop and worker are in a process of their own: that one imports torch, this one does not."""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.clock import SystemClock
from headrace.core.config import LlmArgs
from headrace.core.errors import ConfigError
from headrace.core.phases import Phases

from .engine import Engine
from .find import check_features, find_media, find_model, find_reasoning, find_tokenizer
from .remote import RemoteBackend
from .spawn import EngineProcess, spawn


def launch_engine(
    args: LlmArgs,
    heartbeat_limit: float,
    started: EngineProcess | None = None,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> Engine:
    """As ``build.build_engine``, and raises the same. To be connected to an event loop before it is used.

    ``heartbeat_limit``: the age in seconds at which the engine's heartbeat will be found too old. ``started``: the
    process, if there is one already. ``meanwhile``: what is to be done while it builds.
    """
    if callable(args.batched_logits_processor):
        raise ConfigError(
            "batched_logits_processor: the engine gets a process of its own, which a callable cannot reach;"
            " say where it is imported from (module:object), or use LLM(...), whose engine is in its caller's process"
        )
    clock = SystemClock()
    phases = Phases(clock)
    check_features(args)
    path = find_model(args, phases)
    # Only what was set: the engine tells a setting from a default.
    given = args.model_fields_set - {"tokenizer", "tokenizer_revision", "revision"}
    settings = args.model_dump(mode="json", include=given, exclude_unset=True)
    backend = RemoteBackend.build(started or spawn(), settings | {"model": str(path)}, clock, heartbeat_limit)
    try:
        # While the other process imports torch.
        tokenizer = find_tokenizer(args, path, phases)
        reasoning = find_reasoning(args, tokenizer)
        meanwhile()
        report = backend.report()
        report.phases[:0] = phases.done
        return Engine(backend, report, tokenizer, clock, backend.connect, find_media(path), reasoning)
    except BaseException:
        backend.shutdown()
        raise
