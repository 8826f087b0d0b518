"""What ``AutoDecodingConfig`` stands for, once the models are known."""

from __future__ import annotations

import logging
from typing import Any

from headrace.core.config import LlmArgs
from headrace.core.speculative import (
    AutoDecodingConfig,
    DecodingBaseConfig,
    DraftTargetDecodingConfig,
    EagleDecodingConfig,
    MTPDecodingConfig,
    NGramDecodingConfig,
)
from headrace.models.eagle3 import is_head
from headrace.models.mtp import carries_mtp, is_mtp_folder
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from headrace.weights.resolve import resolve_model

log = logging.getLogger("headrace")

_FEW, _SOME = 4, 16
"""Running sequences up to which drafts are as many as may be, and up to which they are half as many."""


def with_drafter(args: LlmArgs, fields: dict[str, Any], checkpoint: Checkpoint | None) -> LlmArgs:
    """``args`` with the choice in place of an ``AutoDecodingConfig``. Raises ``ModelError`` for a model that is not
    there.

    ``fields``, ``checkpoint``: the model's configuration, and its weights; None for random ones."""
    config = args.speculative_config
    if not isinstance(config, AutoDecodingConfig):
        return args
    chosen = _choose(config, carries=checkpoint is not None and carries_mtp(fields, checkpoint.names()))
    log.info("AutoDecodingConfig: %s", chosen)
    return args.model_copy(update={"speculative_config": chosen})


def _choose(config: AutoDecodingConfig, *, carries: bool) -> DecodingBaseConfig:
    """A head or a model that drafts, if one is given; else an MTP layer that the model ``carries``; else what the texts
    themselves repeat."""
    fields: dict[str, Any] = {
        name: getattr(config, name) for name in DecodingBaseConfig.model_fields if name in config.model_fields_set
    }
    fields["max_draft_len"] = config.max_draft_len
    if config.max_concurrency is None and config.draft_len_schedule is None:
        fields["draft_len_schedule"] = {_FEW: config.max_draft_len, _SOME: -(-config.max_draft_len // 2)}
    if config.speculative_model is None and carries:
        return MTPDecodingConfig(**fields)
    if config.speculative_model is None:
        # The latest place is the likeliest to be gone on with, and texts of strangers are of no use to most.
        return NGramDecodingConfig(**fields, max_matching_ngram_size=3, is_use_oldest=False, is_public_pool=False)
    checkpoint = open_checkpoint(resolve_model(config.speculative_model, revision=None, on_note=log.warning).path)
    try:
        own = checkpoint.config()
    finally:
        checkpoint.close()
    kind: Any = DraftTargetDecodingConfig
    if is_head(own):
        kind = EagleDecodingConfig
    elif is_mtp_folder(own):
        kind = MTPDecodingConfig
    return kind(**fields, speculative_model=config.speculative_model)
