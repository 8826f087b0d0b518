"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringChecker:
    """Lets text through until a stop string is complete; holds back what could still become one.

    The stop that is complete first wins; of those that end at the same character, the longest. So nothing depends on
    how the text was cut into pieces, and no decision waits for text beyond the stop.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        if "" in stops:
            raise ValueError("an empty stop string would match everywhere")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._include_stop = include_stop
        self._held = ""
        self._found: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may be shown, the stop string that is now complete or None). After a stop, text is dropped."""
        if self._found is not None:
            return "", self._found
        text = self._held + text
        end, start, stop = self._first(text)
        if stop is not None:
            self._held, self._found = "", stop
            return text[: end if self._include_stop else start], stop
        keep = len(text) - self._n_held(text)
        self._held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, int, str | None]:
        """End, start and text of the stop that wins, if any."""
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found, default=(0, 0, None))

    def _n_held(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0
