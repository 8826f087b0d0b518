"""An answer's thinking, taken apart from its text as that comes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.core.reasoning import Reasoning, Start


class NoSplit:
    """Everything is the answer."""

    def push(self, text: str, is_last: bool) -> tuple[str, str]:
        """New text to (thinking, answer)."""
        return "", text


class Split:
    """Of one output. However the text is cut into pieces, their parts add up to the same."""

    def __init__(self, reasoning: Reasoning, start: Start) -> None:
        self._marks = reasoning.marks
        self._where = start
        self._at_head = start is not Start.AFTER
        """Nothing but white space has come: the mark that begins the thinking part may be next."""
        self._held = ""

    def push(self, text: str, is_last: bool) -> tuple[str, str]:
        """New text to (thinking, answer): what may become a mark is held back, unless it is the last text."""
        text, self._held = self._held + text, ""
        if self._at_head:
            text = self._head(text, is_last)
        if self._where is Start.AFTER:
            return "", text
        if self._at_head or self._where is Start.UNDECIDED:
            return "", ""
        thinking, mark, answer = text.partition(self._marks.end)
        if mark:
            self._where = Start.AFTER
            return thinking, answer
        n_held = 0 if is_last else _n_begun(text, self._marks.end)
        cut = len(text) - n_held
        self._held = text[cut:]
        return text[:cut], ""

    def _head(self, text: str, is_last: bool) -> str:
        """What is left of the first text behind the mark, if there is one."""
        begin, bare = self._marks.begin, text.lstrip()
        if bare.startswith(begin):
            self._where, self._at_head = Start.INSIDE, False
            return bare[len(begin) :]
        if begin.startswith(bare) and not is_last:
            self._held = text
            return ""
        self._at_head = False
        if self._where is Start.UNDECIDED:
            self._where = Start.AFTER
        return text


def splitter(reasoning: Reasoning | None, prompt: Sequence[int]) -> Callable[[], Split | NoSplit]:
    """What makes a split for each output of a prompt."""
    if reasoning is None:
        return NoSplit
    start = reasoning.start(prompt)
    return lambda: Split(reasoning, start)


def _n_begun(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``mark``."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
