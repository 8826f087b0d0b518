"""Tokenizers out of GGUF metadata, against the vocabularies that the metadata was made from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from vocabularies import TEXTS, byte_fallback, byte_fallback_fields, byte_level, byte_level_fields

from headrace.core.errors import CheckpointError
from headrace.tokenizer.gguf import tokenizer_from_gguf
from headrace.tokenizer.tokenizer import Tokenizer

PATH = Path("m.gguf")


def build(fields: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_gguf(fields, PATH)


BYTE_LEVEL, BYTE_LEVEL_SOURCE = build(byte_level_fields()), byte_level()
FALLBACK = {first: build(byte_fallback_fields(first)) for first in (True, False)}
FALLBACK_SOURCE = {first: byte_fallback(first) for first in (True, False)}

texts = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(codec="utf-8"), max_size=40))


@given(text=texts)
def test_byte_level_ids(text: str) -> None:
    assert BYTE_LEVEL.encode(text) == BYTE_LEVEL_SOURCE.encode(text).ids
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("space_first", [True, False])
@given(text=texts)
def test_sentencepiece_ids(space_first: bool, text: str) -> None:
    tokenizer = FALLBACK[space_first]
    assert tokenizer.encode(text) == FALLBACK_SOURCE[space_first].encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_sentencepiece_merges_the_best_score_first() -> None:
    """Sentencepiece's own rule, done by hand: merge the neighbours whose piece scores best, leftmost first."""
    tokenizer, fields = FALLBACK[False], byte_fallback_fields(False)
    scores = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"].tolist(), strict=True))
    for text in ("theriverturnsthestone", "twice twice the turns", "riverriver river"):
        pieces = list(text.replace(" ", "▁"))
        while True:
            pairs = [
                (-scores[left + right], at)
                for at, (left, right) in enumerate(itertools.pairwise(pieces))
                if left + right in scores
            ]
            if not pairs:
                break
            at = min(pairs)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert [tokenizer.id_to_token(token) for token in ids] == pieces


def test_begin_and_end_tokens() -> None:
    def around(fields: dict[str, Any]) -> str:
        tokenizer = build(fields)
        return tokenizer.decode(tokenizer.encode("Hi"), skip_special_tokens=False)

    assert around(byte_level_fields()) == "Hi"
    assert around(byte_level_fields(add_bos_token=True)) == "<s>Hi"
    assert around(byte_level_fields(add_bos_token=True, add_eos_token=True)) == "<s>Hi</s>"
    assert around(byte_level_fields(pre="llama-bpe")) == "<s>Hi"
    assert around(byte_level_fields(pre="llama-bpe", add_bos_token=False)) == "Hi"
    assert around(byte_fallback_fields(False)) == "<s>Hi"
    assert around(byte_fallback_fields(False) | {"tokenizer.ggml.add_bos_token": False}) == "Hi"


def test_ends_are_the_declared_ones_and_control_tokens_known_by_name() -> None:
    names = {token: index for index, token in enumerate(byte_level_fields()["tokenizer.ggml.tokens"])}
    assert build(byte_level_fields()).eos_ids == {2, names["<|im_end|>"]}
    assert build(byte_level_fields(eot_token_id=0)).eos_ids == {0, 2, names["<|im_end|>"]}
    types = byte_level_fields()["tokenizer.ggml.token_type"].copy()
    types[names["<|im_end|>"]] = 4
    assert build(byte_level_fields(token_type=types)).eos_ids == {2}


def test_user_defined_tokens_show_and_control_tokens_do_not() -> None:
    ids = BYTE_LEVEL.encode("<think>a<|im_end|>")
    assert len(ids) == 3
    assert BYTE_LEVEL.decode(ids) == "<think>a"


def test_templates() -> None:
    fields = byte_level_fields() | {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    tokenizer = build(fields)
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.chat(messages) == "plain"
    assert tokenizer.chat(messages, tools=[{}]) == "tools"
    assert not BYTE_LEVEL.has_chat_template


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        ("smollm", [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        (
            "llama-bpe",
            [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
        ),
        ("qwen2", [pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]),
    ],
)
def test_splits(name: str, expected: list[Any]) -> None:
    split, reference = build(byte_level_fields(pre=name)).backend.pre_tokenizer, pre_tokenizers.Sequence(expected)
    for text in TEXTS:
        assert split.pre_tokenize_str(text) == reference.pre_tokenize_str(text)


UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = TEKKEN.replace("+|[^", f"+{ENDINGS}|[^").replace(r"*|\p{N}|", rf"*{ENDINGS}|\p{{N}}{{1,3}}|")


@pytest.mark.parametrize(
    ("name", "pattern", "pieces"),
    [
        ("dbrx", LLAMA3, "camelCase ĠDON 'T Ġ 123 4"),
        ("tekken", TEKKEN, "camel Case ĠDON 'T Ġ 1 2 3 4"),
        ("gpt-4o", GPT4O, "camel Case ĠDON'T Ġ 123 4"),
    ],
)
def test_splits_against_another_regex_engine(name: str, pattern: str, pieces: str) -> None:
    split = build(byte_level_fields(pre=name)).backend.pre_tokenizer
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert [piece for piece, _ in split.pre_tokenize_str("camelCase DON'T 1234")] == pieces.split(" ")
    for text in (*TEXTS, "HTTPServer a/b//\n\n c", "x\u0301Y\u0301z it'S  \t\r\n  9 \u00c5s"):
        found = regex.findall(pattern, text)
        assert "".join(found) == text
        expected = [letters.pre_tokenize_str(piece)[0][0] for piece in found]
        assert [piece for piece, _ in split.pre_tokenize_str(text)] == expected


def test_begin_token_and_merges_of_tekken() -> None:
    tokenizer = build(byte_level_fields(pre="tekken"))
    assert tokenizer.decode(tokenizer.encode("Hi"), skip_special_tokens=False) == "<s>Hi"
    assert tokenizer.backend.model.ignore_merges
    assert not build(byte_level_fields(pre="gpt-4o")).backend.model.ignore_merges


def test_qwen2_composes_characters() -> None:
    assert build(byte_level_fields(pre="qwen2")).encode("e\u0301") == BYTE_LEVEL.encode("é")
    assert BYTE_LEVEL.encode("e\u0301") != BYTE_LEVEL.encode("é")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, r"'tokenizer\.ggml\.model': expected text, it is missing"),
        ({"model": "bert"}, "tokenizer model 'bert' is not supported; supported: gpt2, llama"),
        ({"pre": "no-such"}, "pre-tokenizer 'no-such' is not supported; supported: default, gpt-2, smollm"),
        ({"tokens": None}, r"tokens': expected an array of texts, it is missing"),
        ({"tokens": ["a", "b", "a"]}, "token 'a' is in the vocabulary twice"),
        ({"token_type": np.ones(3, np.int32)}, r"token_type': expected an array of \d+ numbers"),
        ({"token_type": 1}, "token_type': expected an array"),
        ({"merges": ["a b c d", "zz yy"]}, "damaged vocabulary"),
        ({"merges": ["ab"]}, "damaged vocabulary"),
        ({"eos_token_id": 10**6}, r"eos_token_id': expected an id below \d+, found 1000000"),
        ({"eos_token_id": "2"}, "eos_token_id': expected an id below"),
        ({"add_bos_token": 1}, "add_bos_token': expected true or false, found 1"),
    ],
)
def test_metadata_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build(byte_level_fields(**changes))


def test_a_sentencepiece_vocabulary_without_scores() -> None:
    fields = byte_fallback_fields(False)
    del fields["tokenizer.ggml.scores"]
    with pytest.raises(CheckpointError, match=r"scores': expected an array of .* it is missing"):
        build(fields)


def test_the_sources_are_what_they_claim() -> None:
    """The comparison means something only if the vocabularies merge, split and fall back."""
    assert isinstance(BYTE_LEVEL_SOURCE, tokenizers.Tokenizer)
    assert len(BYTE_LEVEL_SOURCE.encode(TEXTS[0]).ids) < len(TEXTS[0].encode()) / 1.5
    ids = FALLBACK_SOURCE[False].encode("wheel 水").ids
    assert sum(3 <= token < 259 for token in ids) == 3
    assert len(ids) < 8
