"""The limits and choices of a scheduler, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Raises ``ConfigError`` for a value out of range. Policies are named as in TensorRT-LLM's SchedulerConfig."""

    max_batch_size: int
    """Sequences that run at once: the worker's slots."""
    max_num_tokens: int
    """Rows of one step. May be below the batch size: rows then take turns."""
    max_seq_len: int
    """Prompt and output of one sequence."""
    chunked_prefill: bool = True
    """False: a prompt is computed in one step, and must fit ``max_num_tokens``."""
    whole_prompts: bool = False
    """The model has no other way."""
    capacity_policy: str = "MAX_UTILIZATION"
    chunking_policy: str = "FIRST_COME_FIRST_SERVED"
    max_beam_width: int | None = None
    """Beams of one request; None: as many as there are slots."""
    max_queue_size: int | None = None
    """Sequences that may wait; None: no limit."""
    depth: int = 2
    """Steps that are in flight at once."""
    more_drafts: int = 0
    """Rows for drafts of a sequence beside a chain of them: what the worker drafts is a tree."""
    most_trees: int = 0
    """Sequences of a step that may have such rows."""
    tells_ends: bool = False
    """The worker keeps something of sequences until it hears that they have ended."""

    def __post_init__(self) -> None:
        for name, least in (("max_batch_size", 1), ("max_num_tokens", 1), ("max_seq_len", 2), ("depth", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name}={value}; it must be at least {least}")
        if self.max_queue_size is not None and self.max_queue_size < 1:
            raise ConfigError(f"max_queue_size={self.max_queue_size}; give at least 1, or None for no limit")
