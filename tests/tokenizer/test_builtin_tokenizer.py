"""The built-in model's tokenizer, against byte-pair merging written out in plain Python."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import TEXTS

from headrace.tokenizer.load import load_tokenizer
from headrace.tokenizer.tokenizer import Tokenizer
from headrace.weights.gguf_reader import read_header
from headrace.weights.resolve import resolve_model

pytestmark = pytest.mark.real

WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
"""GPT-2's pattern."""


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve_model("smollm2").path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def merge_by_hand(path: Path) -> Callable[[str], list[int]]:
    metadata = read_header(path).metadata
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + rank) for rank, byte in enumerate(sorted(set(range(256)) - set(shown)))}

    def encode(text: str) -> list[int]:
        found = []
        for part in regex.split(r"(\p{N})", text):
            for word in WORDS.findall(part):
                pieces = [letters[byte] for byte in word.encode()]
                while pairs := [
                    (ranks[pair], at) for at, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks
                ]:
                    at = min(pairs)[1]
                    pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
                found += [ids[piece] for piece in pieces]
        return found

    return encode


def test_a_conversation(tokenizer: Tokenizer) -> None:
    text = tokenizer.chat([{"role": "user", "content": "Hello world"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello world<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    # <|im_start|> is 1, <|im_end|> is 2, a line end 198; no begin token is added.
    assert ids[0] == 1
    assert ids[-13:] == [2, 198, 1, 4093, 198, 19556, 905, 2, 198, 1, 520, 9531, 198]
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.vocab_size == 49_152


@pytest.mark.parametrize("text", TEXTS)
def test_texts(tokenizer: Tokenizer, merge_by_hand: Callable[[str], list[int]], text: str) -> None:
    assert tokenizer.encode(text) == merge_by_hand(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Characters that have long been assigned: libraries differ in what they know of the newest. The vocabulary lacks a few
# bytes that only occur beyond the planes in use.
characters = st.characters(max_codepoint=0x2FFF, categories=("L", "M", "N", "P", "S", "Z"))


@given(text=st.text(st.one_of(characters, st.sampled_from("abcde 012\n'水🙂")), max_size=60))
def test_any_text(tokenizer: Tokenizer, merge_by_hand: Callable[[str], list[int]], text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == merge_by_hand(text)
    assert tokenizer.decode(ids) == text
