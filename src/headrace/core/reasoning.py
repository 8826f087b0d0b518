"""The thinking part of an output: the marks around it, and whether an output begins inside it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts of the tokens around the thinking part."""

    begin: str
    end: str


THINK = Marks("<think>", "</think>")
SQUARE_THINK = Marks("[THINK]", "[/THINK]")
KNOWN_MARKS = (THINK, SQUARE_THINK)
"""What ``auto`` looks for in a chat template: the first pair that stands in it."""

Parser = Literal["auto", "deepseek-r1", "nano-v3", "qwen3", "magistral"]
"""``auto``: as the chat template has it."""

PARSERS: dict[Parser, tuple[Marks, bool]] = {
    "deepseek-r1": (THINK, True),
    "nano-v3": (THINK, True),
    "qwen3": (THINK, False),
    "magistral": (SQUARE_THINK, False),
}
"""By name: the marks, and whether an output thinks from its first token on where the prompt says nothing of it."""


class Start(enum.Enum):
    """Where an output stands before its first token."""

    INSIDE = enum.auto()
    """In the thinking part."""
    UNDECIDED = enum.auto()
    """It thinks if its first token is the mark."""
    AFTER = enum.auto()
    """Behind it: the prompt has closed it."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How a model's outputs think."""

    marks: Marks
    begin_id: int
    end_id: int
    starts_inside: bool
    """Where the prompt ends with neither mark."""
    blank_ids: frozenset[int]
    """Tokens that may stand between a mark and the end of a prompt."""

    def start(self, prompt: Sequence[int]) -> Start:
        """By the mark that the prompt ends with: templates open the thinking part, close it, or leave it to the model.
        Marks further up belong to earlier turns."""
        last = next((token for token in reversed(prompt) if token not in self.blank_ids), None)
        if last == self.begin_id:
            return Start.INSIDE
        if last == self.end_id:
            return Start.AFTER
        return Start.INSIDE if self.starts_inside else Start.UNDECIDED
