"""However the text is cut, the same stop is found at the same place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.tokenizer.stop_strings import StopStringChecker


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[list[str], str | None]:
    checker, shown = StopStringChecker(stops, include), []
    for piece in pieces:
        safe, stop = checker.push(piece)
        shown.append(safe)
        if stop is not None:
            return shown, stop
    return [*shown, checker.flush()], None


def by_definition(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character: the first end wins, there the longest stop."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=500)
@given(data=st.data(), include=st.booleans())
def test_any_cut_gives_what_the_definition_gives(data: st.DataObject, include: bool) -> None:
    letters = st.text("ab水", max_size=20)
    text = data.draw(letters)
    stops = data.draw(st.lists(st.text("ab水", min_size=1, max_size=5), max_size=4))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[first:last] for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, stop = run(pieces, stops, include)
    assert ("".join(shown), stop) == by_definition(text, stops, include)


@given(text=st.text("abc", max_size=20), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_exactly_what_could_become_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    checker, shown = StopStringChecker(stops), ""
    for count, char in enumerate(text, 1):
        safe, stop = checker.push(char)
        if stop is not None:
            return
        shown += safe
        tails = [text[first:count] for first in range(count)]
        held = next((tail for tail in tails if any(stop.startswith(tail) for stop in stops)), "")
        assert shown + held == text[:count]


def test_across_pieces() -> None:
    assert run(["Hello wo", "rld", "! more"], ["world!"]) == (["Hello ", "", ""], "world!")
    assert run(["Hello wo", "rd"], ["world!"]) == (["Hello ", "word", ""], None)
    assert run(["Hello wo"], ["world!"]) == (["Hello ", "wo"], None)
    assert run(["Hello wo", "rld!"], ["world!"], include=True) == (["Hello ", "world!"], "world!")


def test_the_first_to_be_complete_wins_and_of_those_the_longest() -> None:
    assert run(["abcd"], ["abcd", "c"]) == (["ab"], "c")
    assert run(["abcd"], ["bc", "abc"]) == ([""], "abc")


def test_no_stops_hold_nothing() -> None:
    assert run(["a", "b"], []) == (["a", "b", ""], None)


def test_text_after_the_stop_is_dropped() -> None:
    checker = StopStringChecker(["x"])
    assert checker.push("1x2") == ("1", "x")
    assert checker.push("3") == ("", "x")
    assert checker.flush() == ""


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty stop string"):
        StopStringChecker(["a", ""])
