"""Both backends of guided decoding under one contract: what they accept, refuse, mask and take back."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from guided_words import EOS, accepts, params, samplers, tiny_tokenizer, tiny_vocabulary
from pydantic import BaseModel

from headrace.core.errors import RequestError
from headrace.core.reasoning import THINK, Reasoning
from headrace.core.sampling_params import SamplingParams
from headrace.guided import Compiler, Matcher, Thinking, Vocabulary, make_compiler, vocabulary_of

NEEDS_XGRAMMAR = pytest.mark.skipif(importlib.util.find_spec("xgrammar") is None, reason="xgrammar is not installed")
# Its import takes transformers along: seconds.
BACKENDS = ["llguidance", pytest.param("xgrammar", marks=[NEEDS_XGRAMMAR, pytest.mark.slow])]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return tiny_vocabulary()


@pytest.fixture(params=BACKENDS, scope="module")
def compiler(request: pytest.FixtureRequest, vocabulary: Vocabulary) -> Compiler:
    return make_compiler(request.param, vocabulary)


class Person(BaseModel):
    name: str
    age: int


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"json": PERSON}, ['{"name": "Ana", "age": 3}', '{"name":"","age":-12}'], ['{"name": "Ana"}', "{}", "[]", ""]),
        ({"json": Person}, ['{"name": "Ana", "age": 3}'], ['{"name": "Ana", "age": "3"}']),
        ({"json": '{"enum": ["a", 1, null]}'}, ['"a"', "1", "null"], ["2", '"b"', "a"]),
        ({"json_object": True}, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", "{", "{} {}"]),
        ({"regex": "[a-c]{2}[0-9]+"}, ["ab0", "cc123"], ["ab", "abc1", "ab1x"]),
        ({"choice": ["yes", "no", 'qu"o\\te\n', "né"]}, ["yes", "no", 'qu"o\\te\n', "né"], ["yesno", "y", "ne"]),
        ({"grammar": 'root ::= "x" [0-9]+ tail\ntail ::= "y" | "z" tail'}, ["x1y", "x23zzy"], ["xy", "x1z"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("n_drafts", [0, 3])
def test_what_can_be_said(
    compiler: Compiler, vocabulary: Vocabulary, fields: dict, good: list[str], bad: list[str], n_drafts: int
) -> None:
    grammar = compiler.compile(params(**fields))
    for sampler in samplers(len(vocabulary.tokens)):
        assert [accepts(sampler, grammar, vocabulary, text, n_drafts) for text in good] == [True] * len(good)
        assert [accepts(sampler, grammar, vocabulary, text, n_drafts) for text in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "[0-"},
        {"regex": "a(?=b)"},
        {"grammar": "root ::= ("},
        {"json": {"type": "object", "not": {}}},
        {"json": {"type": "array", "uniqueItems": True}},
        {"json": {"type": "string", "format": "no-such-format"}},
        {"json": {"$ref": "https://example.org/schema"}},
        {"json": {"type": "array", "contains": {"type": "integer"}}},
        {"json": {"if": {}, "then": False}},
        {"json": {"x-guidance": {"lenient": True}, "not": {}}},
    ],
    ids=str,
)
def test_what_is_wrong_or_not_enforced_is_refused(compiler: Compiler, fields: dict) -> None:
    with pytest.raises(RequestError) as caught:
        compiler.compile(params(**fields))
    assert caught.value.param in fields


def test_masks_know_special_tokens_padding_and_ends(compiler: Compiler, vocabulary: Vocabulary) -> None:
    matcher = compiler.compile(params(regex="(.|\\n)*")).matcher()
    words = np.zeros(-(-len(vocabulary.tokens) // 32), np.uint32)
    assert matcher.fill(words)
    allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
    assert not {0, 1, EOS}.intersection(allowed.tolist())
    assert allowed.max() < vocabulary.tokenizer.vocab_size
    assert len(allowed) > 100
    for token in (0, 1, EOS, vocabulary.tokenizer.vocab_size):
        assert not matcher.consume(token)


def test_what_was_taken_back_was_never_there(compiler: Compiler, vocabulary: Vocabulary) -> None:
    def mask(matcher: object) -> tuple[bool, bytes]:
        words = np.zeros(-(-len(vocabulary.tokens) // 32), np.uint32)
        return matcher.fill(words), words.tobytes()

    tokens = vocabulary.tokenizer.encode('{"name": "Ana", "age": 3', add_special_tokens=False)
    grammar = compiler.compile(params(json=PERSON))
    matcher, fresh = grammar.matcher(), grammar.matcher()
    for done in range(len(tokens)):
        for ahead in range(1, min(4, len(tokens) - done)):
            assert all(matcher.consume(token) for token in tokens[done : done + ahead])
            assert not matcher.consume(0)
            matcher.rollback(ahead)
            assert mask(matcher) == mask(fresh)
        assert matcher.consume(tokens[done])
        assert fresh.consume(tokens[done])


@pytest.mark.parametrize("prompt", [[9, 3], [9]])
def test_a_thinking_part_before_a_grammar(compiler: Compiler, vocabulary: Vocabulary, prompt: list[int]) -> None:
    """Tokens 3 and 4 are the marks. Whatever is taken back was never there, across the marks too."""
    thinking = Thinking(Reasoning(THINK, 3, 4, False, frozenset()), vocabulary)
    grammar = thinking.before(compiler.compile(params(regex="[a-c]{1,3}")), prompt)
    (b,) = vocabulary.tokenizer.encode("b", add_special_tokens=False)
    way = [3, 9, 3, 4, b, b] if prompt == [9] else [9, 3, 4, b, b]
    opened, closed = (0 if prompt != [9] else 1), way.index(4) + 1

    def mask(matcher: Matcher) -> tuple[bool, set[int]]:
        words = np.zeros(-(-len(vocabulary.tokens) // 32), np.uint32)
        may_end = matcher.fill(words)
        return may_end, set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())

    letters = {vocabulary.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "abc"}
    every = set(range(len(vocabulary.tokens))) - {EOS}
    matcher = grammar.matcher()
    for done in range(len(way) + 1):
        is_first = prompt == [9] and done == 0
        expected = letters | {3} if is_first else every if opened <= done < closed else letters
        assert mask(matcher) == (done > closed, expected)
        assert not matcher.consume(EOS)
        for ahead in range(len(way) - done + 1):
            assert all(matcher.consume(token) for token in way[done : done + ahead])
            matcher.rollback(ahead)
            assert mask(matcher)[1] == expected
        assert done == len(way) or matcher.consume(way[done])
    assert thinking.before(grammar, [9, 4]) is grammar


def test_white_space_comes_to_an_end(compiler: Compiler, vocabulary: Vocabulary) -> None:
    grammar = compiler.compile(params(json=PERSON))
    (sampler, *_) = samplers(len(vocabulary.tokens))
    for n, is_good in ((2, True), (20, True), (40, False)):
        text = "{" + " " * n + '"name": "Ana", "age": 3}'
        assert accepts(sampler, grammar, vocabulary, text) is is_good


@NEEDS_XGRAMMAR
@pytest.mark.slow
def test_structural_tags(vocabulary: Vocabulary) -> None:
    compiler = make_compiler("xgrammar", vocabulary)
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": ["<f>"],
            "tags": [{"begin": "<f>", "content": {"type": "json_schema", "json_schema": PERSON}, "end": "</f>"}],
        },
    }
    grammar = compiler.compile(params(structural_tag=tag))
    for sampler in samplers(len(vocabulary.tokens)):
        assert accepts(sampler, grammar, vocabulary, 'so <f>{"name": "Ana", "age": 3}</f> it is')
        assert not accepts(sampler, grammar, vocabulary, 'so <f>{"name": 3}</f> it is')
    tag["format"]["tags"][0]["content"]["json_schema"] = {"type": "array", "uniqueItems": True}
    with pytest.raises(RequestError, match="uniqueItems"):
        compiler.compile(params(structural_tag=tag))


def test_llguidance_names_the_backend_for_structural_tags(vocabulary: Vocabulary) -> None:
    with pytest.raises(RequestError, match="xgrammar"):
        make_compiler("llguidance", vocabulary).compile(params(structural_tag={"type": "structural_tag"}))


def test_nothing_to_make_bytes_of() -> None:
    with pytest.raises(RequestError, match="tokenizer"):
        vocabulary_of(None, 100, frozenset({2}))
    tokenizer = tiny_tokenizer()
    tokenizer.eos_ids = frozenset()
    with pytest.raises(RequestError, match="end token"):
        vocabulary_of(tokenizer, 300, frozenset())


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "exactly one"),
        ({"json": {}, "regex": "a"}, "exactly one"),
        ({"json": "{"}, "json"),
        ({"json": 3}, "json"),
        ({"json": "true"}, "json"),
        ({"json": {"a": float("nan")}}, "json"),
        ({"regex": ""}, "regex"),
        ({"regex": "\ud800"}, "regex"),
        ({"regex": "a" * 300_000}, "at most"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", 3]}, "choice"),
        ({"json_object": "yes"}, "json_object"),
    ],
)
def test_params_name_the_field(fields: dict, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        params(**fields)
    with pytest.raises(RequestError, match="guided_decoding"):
        SamplingParams(guided_decoding=fields)
