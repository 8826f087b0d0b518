"""Pieces add up to the whole, and no piece holds half a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXTS, byte_fallback, byte_level, word_piece

from headrace.core.errors import RequestError
from headrace.tokenizer.detokenizer import Detokenizer
from headrace.tokenizer.token_bytes import byte_decoding
from headrace.tokenizer.tokenizer import Tokenizer

TOKENIZERS = {
    "byte_level": Tokenizer(byte_level()),
    "byte_fallback": Tokenizer(byte_fallback(space_first=False)),
    "byte_fallback_space_first": Tokenizer(byte_fallback(space_first=True)),
}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)

BYTE_LEVEL_OF = {TOKENIZERS["byte_level"].token_bytes(i): i for i in range(TOKENIZERS["byte_level"].vocab_size)}

texts = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("é水물👩\u200d🇫👋🏽 \n")), max_size=40)


def cut(ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """``ids`` in pieces of ``sizes`` by turns."""
    pieces, first, turn = [], 0, 0
    while first < len(ids):
        size = max(sizes[turn % len(sizes)], 1)
        pieces.append(ids[first : first + size])
        first, turn = first + size, turn + 1
    return pieces


def stream(tokenizer: Tokenizer, ids: Sequence[int], sizes: Sequence[int], skip: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip)
    return [*(detokenizer.push(piece) for piece in cut(ids, sizes)), detokenizer.flush()]


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@KINDS
@given(data=st.data(), sizes=sizes, skip=st.booleans())
def test_any_ids_in_any_pieces(kind: str, data: st.DataObject, sizes: list[int], skip: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    # One id beyond the vocabulary: models have padding rows.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size), max_size=40))
    assert "".join(stream(tokenizer, ids, sizes, skip)) == tokenizer.decode(ids, skip)


@KINDS
@given(text=texts, sizes=sizes)
def test_no_piece_holds_half_a_character(kind: str, text: str, sizes: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = stream(tokenizer, ids, sizes, skip=False)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False) == text
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


@given(raw=st.binary(max_size=30), sizes=sizes)
def test_any_bytes_of_a_byte_level_vocabulary(raw: bytes, sizes: list[int]) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = [BYTE_LEVEL_OF[bytes([byte])] for byte in raw]
    assert "".join(stream(tokenizer, ids, sizes, skip=True)) == raw.decode("utf-8", "replace")


@given(ids=st.lists(st.integers(0, TOKENIZERS["byte_level"].vocab_size), max_size=40), skip=st.booleans())
def test_byte_level_decoding_is_the_librarys(ids: list[int], skip: bool) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.decode(ids, skip) == tokenizer.backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", ["byte_fallback", "byte_fallback_space_first"])
@settings(max_examples=200)
@given(data=st.data(), skip=st.booleans())
def test_byte_fallback_decoding_is_the_librarys_where_the_bytes_are_utf8(
    kind: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer = TOKENIZERS[kind]
    words = st.integers(259, tokenizer.vocab_size).map(lambda token: [token])
    characters = st.characters(codec="utf-8").map(lambda char: [3 + byte for byte in char.encode()])
    specials = st.sampled_from([0, 1, 2]).map(lambda token: [token])
    groups = data.draw(st.lists(st.one_of(words, characters, specials), max_size=20))
    ids = [token for group in groups for token in group]
    assert tokenizer.decode(ids, skip) == tokenizer.backend.decode(ids, skip_special_tokens=skip)


def test_a_broken_run_of_bytes_keeps_its_valid_characters() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = [3 + byte for byte in "水".encode() + b"\xff" + "é".encode()]
    assert tokenizer.decode(ids) == "水\ufffdé"
    assert stream(tokenizer, ids, [1], skip=True) == ["", "", "水", "\ufffd", "", "é", ""]


def test_a_character_appears_with_its_last_byte_and_not_before() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = [BYTE_LEVEL_OF[bytes([byte])] for byte in "👋".encode()]
    assert stream(tokenizer, ids, [1], skip=True) == ["", "", "", "👋", ""]
    assert stream(tokenizer, ids[:3], [1], skip=True) == ["", "", "", "\ufffd"]


def test_the_end_token_after_half_a_character() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    half = [BYTE_LEVEL_OF[bytes([byte])] for byte in "水".encode()[:2]]
    end = tokenizer.token_to_id("</s>")
    assert stream(tokenizer, [*half, end], [1], skip=True) == ["", "", "", "\ufffd"]
    assert stream(tokenizer, [*half, end], [1], skip=False) == ["", "", "\ufffd</s>", ""]


@KINDS
def test_the_prompts_tail_is_context_only(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        for border in range(len(ids)):
            before, after = ids[:border], ids[border:]
            detokenizer = Detokenizer(tokenizer, prompt_tail=before)
            given_out = detokenizer.push(after) + detokenizer.flush()
            whole = tokenizer.decode(ids)
            shown = Detokenizer(tokenizer).push(before)
            assert shown + given_out == whole


def test_words_of_wordpiece_stream_through_the_library() -> None:
    tokenizer = Tokenizer(word_piece())
    assert tokenizer.byte_decoding is None
    ids = tokenizer.encode("the river turns the wheel turning")
    assert (
        "".join(stream(tokenizer, ids, [1], skip=True)) == tokenizer.decode(ids) == "the river turns the wheel turning"
    )
    with pytest.raises(RequestError, match="spaces_between_special_tokens=False"):
        Detokenizer(tokenizer, spaces_between_special_tokens=False)
    with pytest.raises(RequestError, match="spaces_between_special_tokens=False"):
        tokenizer.decode(ids, spaces_between_special_tokens=False)
    with pytest.raises(ValueError, match="not one of bytes"):
        tokenizer.token_bytes(1)


def test_ids_that_no_vocabulary_has() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.decode([10**6]) == ""
    for token_id in (-1, 1 << 32):
        with pytest.raises(RequestError, match=f"token id {token_id} is out of range"):
            tokenizer.decode([token_id])


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 2, "stop": 0},
            ],
        },
    ],
)
def test_other_decoders_are_left_to_the_library(decoder: dict | None) -> None:
    assert byte_decoding(decoder) is None
