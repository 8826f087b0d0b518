"""HTTP requests that are almost right. Each is a function of a seed and a number: one can be had again alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "prompt": ["a", [5, 6]],
        "max_tokens": 2,
        "n": 2,
        "stop": ["x"],
        "seed": 3,
        "logit_bias": {"5": 1.0},
        "echo": True,
        "logprobs": 2,
        "temperature": 1.0,
        "top_k": 5,
        "min_tokens": 1,
        "stop_token_ids": [9],
        "repetition_penalty": 1.1,
        "cache_salt": "s",
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "a", "name": "b"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ],
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "prompt_logprobs": 1,
        "top_p": 0.5,
        "min_p": 0.1,
        "chat_template_kwargs": {"a": 1},
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "truncate_prompt_tokens": 4,
        "priority": 0.5,
        "metadata": {"a": "b"},
    },
    "/v1/embeddings": {"input": ["a", [5, 6]], "encoding_format": "base64", "dimensions": 4, "pooling_type": "mean"},
    "/pooling": {"input": "a", "pooling_type": "all", "normalize": False, "truncate_prompt_tokens": 4},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"], "priority": 0.5},
    "/v1/rerank": {"query": "a", "documents": ["b", "c"], "top_n": 1, "return_documents": True},
    "/v1/classify": {"input": ["a"], "use_activation": False},
    "/tokenize": {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True},
    "/detokenize": {"tokens": [5, 6, 7], "skip_special_tokens": True},
}
"""Valid bodies, by path."""

STRANGE = (
    *(None, True, False, -1, 0, 1, 2, 128, 129, 1 << 31, -(1 << 63), 1 << 64, 1 << 70, 1e308, -0.0, 0.5, 5.0, 1e-320),
    *("", "a", "5", "\x00", "\U0001f600", "\ufeff", "\u202e", "{{ 1 / 0 }}", "null"),
    *([], {}, [[]], [None], {"a": []}, {"": 0}, [5, "a"], [True], [0] * 300, ["a"] * 513),
)
RIGHT: dict[str, tuple[Any, ...]] = {
    "prompt": ("b", "", ["a", "b"], [7], [[7, 8], [9]], "é\U0001f600", ["a"] * 20),
    "messages": ([{"role": "user", "content": ""}], [{"role": "developer", "content": "{% if %}"}]),
    "input": ("b", "", ["a", "b"], [7], [[7, 8], [9]], "é\U0001f600"),
    "documents": (["b"], ["", "é"], ["a"] * 20),
    "text_2": ("b", ["a"] * 20, ["b", ""]),
    "pooling_type": ("last", "cls", "step", None),
    "dimensions": (1, 32, 33, None),
    "use_activation": (True, None),
    "max_tokens": (1, 3, 40),
    "max_completion_tokens": (2, None),
    "n": (1, 3, None),
    "temperature": (0, 0.0, 2, 100.0, None),
    "logprobs": (0, 20, False, True, None),
    "top_logprobs": (0, 20),
    "prompt_logprobs": (0, 20, None),
    "echo": (False, True),
    "stream": (False, True),
    "stream_options": ({"include_usage": False}, {}, None),
    "stop": ("a", ["a", "\U0001f600", "ab" * 50], [], None),
    "seed": (0, -5, (1 << 64) - 1, None),
    "logit_bias": ({}, {"0": -100, "319": 100}, {"²": 1}, None),
    "min_tokens": (0, 2),
    "top_k": (0, 1, 319),
    "top_p": (1, 1e-9),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2.0),
    "repetition_penalty": (0.01, 100),
    "ignore_eos": (True, False),
    "detokenize": (False, True),
    "include_stop_str_in_output": (True,),
    "skip_special_tokens": (False,),
    "logprobs_mode": ("raw", "processed"),
    "truncate_prompt_tokens": (1, 1000),
    "add_special_tokens": (True, False),
    "model": ("tiny", None),
    "user": ("a" * 1000,),
    "response_format": ({"type": "text"}, {"type": "json_object"}, {"type": "regex", "regex": "a|b"}),
    "guided_choice": (["a", "b"],),
    "tokens": ([], [0, 1, 2], [200] * 300),
    "return_token_strs": (True,),
}
"""Values that are right where the field is, alone or with others, or look it."""
KEYS = (
    "x",
    "",
    "5",
    "²",
    "self",
    "model_config",
    "__class__",
    "prompt",
    "messages",
    "stop",
    "model",
    "suffix",
    "tools",
    "n",
)
RAW_VALUES = ("NaN", "-Infinity", "1e999", "-1e999", "1" * 5000, "01", "+1", "'a'", "tru", '"\\ud800"', '"\\x"', "")
MEDIA_TYPES = (
    *(b"", b"text/plain", b"application/xml", b"multipart/form-data", b"application/x-www-form-urlencoded", b"\xff"),
    *(b"application/json; charset=x", b"APPLICATION/JSON", b"application/vnd.api+json"),
)
HEADERS = (
    (b"content-type", MEDIA_TYPES),
    (b"content-length", (b"0", b"-1", b"1e3", b"\xb2", b"9" * 30, b"999999999999", b"", b"5, 5")),
    (b"accept", (b"", b"text/html", b"*/*;q=nan", b"\xe9" * 20)),
    (b"accept-encoding", (b"gzip;q=0", b"identity;q=0", b"*")),
    (b"authorization", (b"", b"Bearer", b"Bearer \xff\x00", b"Basic Og==", b"Bearer " + b"k" * 5000)),
    (b"content-encoding", (b"gzip", b"br", b"nonsense")),
    (b"transfer-encoding", (b"chunked", b"gzip, chunked")),
    (b"expect", (b"100-continue", b"the spanish inquisition")),
    (b"range", (b"bytes=0-0", b"bytes=-")),
    (b"host", (b"", b"a" * 300, b"[::1", b"\xff")),
    (b"origin", (b"null", b"http://elsewhere.example")),
    (b"x-forwarded-for", (b"127.0.0.1, \xff",)),
    (b"cookie", (b"=;=;=", b"a=" + b"b" * 5000)),
    (b"connection", (b"upgrade", b"close, keep-alive")),
    (b"upgrade", (b"websocket", b"h2c")),
    (b"x-\xff", (b"\x01",)),
)
PATHS = (
    *("/", "//", "/v1", "/v1/completions/", "/v1//completions", "/V1/COMPLETIONS", "/v1/models/a/b", "/page/..%2f"),
    *("/%00", "/%ff%fe", "/v1/completions%00", "/openapi.json", "/docs", "/health", "/../../etc/passwd", "/page/"),
)
METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW")
QUERIES = (b"a=b", b"%", b"prompt=a&prompt=b", b"\xff\xfe", b"x=" + b"y" * 3000)


@dataclass(slots=True)
class Raw:
    """A request as it is sent."""

    path: str
    body: bytes
    method: str = "POST"
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"application/json")])
    done: list[str] = field(default_factory=list)
    """Names of the mutations."""


def mutated(seed: int, number: int) -> Raw:
    """Request ``number`` of the series ``seed``: a valid body with one to three things wrong, or right by chance."""
    chance = random.Random(f"{seed}:{number}")
    path = chance.choice(list(BODIES))
    body: Any = BODIES[path]
    done = []
    for _ in range(chance.randrange(3)):
        if isinstance(body, dict) and chance.random() < 0.5:
            body = _fewer(chance, body)
        body = _value(chance, body)
        done.append("value")
    if isinstance(body, dict) and path.endswith("completions") and body.get("max_tokens") is None:
        # Up to the sequence limit would be right, and long.
        body = body | {"max_tokens": 2}
    raw = Raw(path, json.dumps(body).encode(), done=done)
    for mutate in chance.choices(_OF_TEXT, _WEIGHTS, k=chance.choice((0, 0, 0, 1, 2)) if done else 1):
        mutate(chance, raw)
        raw.done.append(mutate.__name__.strip("_"))
    return raw


_NEEDED = ("prompt", "messages", "input", "text_1", "text_2", "query", "documents")


def _fewer(chance: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Only some of the fields: errors hide each other."""
    kept = {name: value for name, value in body.items() if name in _NEEDED or chance.random() < 0.3}
    return {name: value for name, value in kept.items() if name != "stream_options" or "stream" in kept}


def _value(chance: random.Random, value: Any, depth: int = 0) -> Any:
    """``value`` with something in it changed, removed, added or swapped for another type."""
    if depth > 4 or chance.random() < 0.15 * depth:
        return chance.choice(STRANGE)
    if isinstance(value, dict) and value:
        changed = dict(value)
        name = chance.choice(list(changed))
        move = chance.randrange(8)
        if depth == 0 and move > 3:
            name = chance.choice([*RIGHT, *changed, *changed, *changed])
            changed[name] = chance.choice(RIGHT.get(name, STRANGE))
        elif move == 0:
            del changed[name]
        elif move == 1:
            # Half of them with a value that its neighbours have: wrong in name only.
            changed[chance.choice(KEYS)] = chance.choice((chance.choice(STRANGE), changed[name]))
        else:
            changed[name] = _value(chance, changed[name], depth + 1)
        return changed
    if isinstance(value, list) and value:
        changed = list(value)
        changed[chance.randrange(len(changed))] = _value(chance, chance.choice(changed), depth + 1)
        return changed * chance.choice((1, 1, 1, 2, 40))
    if isinstance(value, str) and chance.random() < 0.2:
        return value * chance.choice((100, 3000, 200_000))
    return chance.choice(STRANGE)


def _spot(chance: random.Random, raw: Raw) -> int:
    return chance.randrange(len(raw.body) + 1)


def _flip(chance: random.Random, raw: Raw) -> None:
    at = _spot(chance, raw)
    raw.body = raw.body[:at] + bytes([chance.randrange(256)]) + raw.body[at + 1 :]


def _truncate(chance: random.Random, raw: Raw) -> None:
    raw.body = raw.body[: _spot(chance, raw)]


def _bad_utf8(chance: random.Random, raw: Raw) -> None:
    at = _spot(chance, raw)
    bad = chance.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf"))
    raw.body = raw.body[:at] + bad + raw.body[at:]


def _encode(chance: random.Random, raw: Raw) -> None:
    raw.body = raw.body.decode("utf-8", "replace").encode(chance.choice(("utf-8-sig", "utf-16", "utf-32", "utf-7")))


def _surrogate(chance: random.Random, raw: Raw) -> None:
    quotes = [at for at, byte in enumerate(raw.body) if byte == ord('"')]
    if quotes:
        at = chance.choice(quotes)
        raw.body = raw.body[:at] + chance.choice((b'"\\ud800', b'"\\udfff\\ud800', b'\\udead"')) + raw.body[at + 1 :]


def _first_value(chance: random.Random, raw: Raw, text: str) -> None:
    """Puts raw text in the place of the value of a field."""
    colons = [at for at, byte in enumerate(raw.body) if byte == ord(":")]
    if not colons:
        raw.body = text.encode()
        return
    at = chance.choice(colons)
    end = min((raw.body.find(mark, at) for mark in (b",", b"}") if raw.body.find(mark, at) > 0), default=len(raw.body))
    raw.body = raw.body[: at + 1] + text.encode() + raw.body[end:]


def _raw_value(chance: random.Random, raw: Raw) -> None:
    _first_value(chance, raw, chance.choice(RAW_VALUES))


def _nest(chance: random.Random, raw: Raw) -> None:
    depth = chance.choice((20, 300, 5000, 100_000))
    left, right = chance.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    _first_value(chance, raw, left * depth + "1" + (right * depth if chance.random() < 0.7 else ""))


def _duplicate(chance: random.Random, raw: Raw) -> None:
    """A field twice, with two values."""
    name = chance.choice(("prompt", "messages", "max_tokens", "n", "model", "stop", "tokens", "temperature"))
    value = json.dumps(chance.choice(STRANGE))
    if raw.body.startswith(b"{"):
        raw.body = b"{" + f'"{name}": {value}, "{name}": {value}, '.encode() + raw.body[1:]


def _many_fields(chance: random.Random, raw: Raw) -> None:
    fields = "".join(f'"f{number}": 0, ' for number in range(chance.choice((50, 5000))))
    raw.body = raw.body.replace(b"{", b"{" + fields.encode(), 1)


def _header(chance: random.Random, raw: Raw) -> None:
    name, values = chance.choice(HEADERS)
    if chance.random() < 0.8:
        raw.headers = [(one, value) for one, value in raw.headers if one != name]
    raw.headers.append((name, chance.choice(values)))


def _no_headers(chance: random.Random, raw: Raw) -> None:
    raw.headers = []


def _method(chance: random.Random, raw: Raw) -> None:
    raw.method = chance.choice(METHODS)


def _path(chance: random.Random, raw: Raw) -> None:
    raw.path = chance.choice(PATHS)


def _query(chance: random.Random, raw: Raw) -> None:
    raw.query = chance.choice(QUERIES)


def _empty(chance: random.Random, raw: Raw) -> None:
    raw.body = chance.choice((b"", b" ", b"null", b"[]", b"0", b'""', b"{}", b"\x00", b"--", b"a=b&c=d"))


_TABLE: dict[Callable[[random.Random, Raw], None], int] = {
    _flip: 4,
    _truncate: 3,
    _bad_utf8: 3,
    _encode: 2,
    _surrogate: 3,
    _raw_value: 4,
    _nest: 2,
    _duplicate: 3,
    _many_fields: 1,
    _header: 6,
    _no_headers: 1,
    _method: 2,
    _path: 2,
    _query: 2,
    _empty: 2,
}
_OF_TEXT, _WEIGHTS = tuple(_TABLE), tuple(_TABLE.values())
MUTATIONS = ("value", *(mutate.__name__.strip("_") for mutate in _OF_TEXT))
