"""Logits processors of the operator's: imported by the engine's process, and named by requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_rig import NAME, Running, served_apart

from headrace import LLM, ConfigError

MODULE = """
import torch

class Only:
    def __init__(self, token=40):
        self.token = token

    def __call__(self, req_id, logits, token_ids, stream_ptr, client_id):
        logits[0, 0, torch.arange(logits.shape[-1]) != self.token] = -1e9

def raises(req_id, logits, token_ids, stream_ptr, client_id):
    raise LookupError("no such luck")

def rising(req_ids, logits, token_ids, stream_ptr, client_ids):
    for row, (tokens,) in zip(logits, token_ids):
        Only(3 + len(tokens))(None, row, [tokens], None, None)

class Inner:
    fifty = Only(50)

number = 3
"""


@pytest.fixture(scope="module")
def running(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    code = tmp_path_factory.mktemp("code")
    (code / "my_processors.py").write_text(MODULE)
    paths = {"forty": "my_processors:Only", "fifty": "my_processors:Inner.fifty", "raises": "my_processors:raises"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code), prepend=":")
        with served_apart(folder, logits_processors=paths, batched_logits_processor="my_processors:rising") as running:
            yield running
            running.idle()


def ask(running: Running, **fields: Any) -> Any:
    body = {"model": NAME, "prompt": [9] * 20, "max_tokens": 4, "seed": 1, "detokenize": False, "ignore_eos": True}
    return running.post("/v1/completions", body | fields)


def ids(running: Running, **fields: Any) -> list[int]:
    answer = ask(running, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def test_processors_by_name(running: Running) -> None:
    plain = ids(running)
    assert ids(running, logits_processor="forty") == [40] * 4
    assert ids(running, logits_processor=["fifty"]) == [50] * 4
    assert ids(running, apply_batched_logits_processor=True) == [23, 24, 25, 26]
    assert ids(running, logits_processor=[]) == plain
    chat = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "logits_processor": "forty"}
    answer = running.post("/v1/chat/completions", chat | {"ignore_eos": True, "logprobs": True, "temperature": 0})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert "my_processors:Only" in running.get("/server_info").text


def test_what_a_processor_raises_is_its_request_s(running: Running) -> None:
    answer = ask(running, logits_processor=["forty", "raises"])
    assert "no such luck" in answer.json()["error"]["message"]
    assert answer.status_code == 400
    answer = ask(running, logits_processor="fourty")
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "logits_processor: there is no processor 'fourty'" in message
    assert "forty, fifty, raises" in message
    assert ids(running, logits_processor="forty") == [40] * 4


@pytest.mark.parametrize(
    ("path", "word"),
    [("no_such_module_here:x", "PYTHONPATH"), ("string:nothing", "nothing"), ("string:digits", "called")],
)
def test_what_cannot_be_imported_ends_the_start(folder: Path, path: str, word: str) -> None:
    for options in ({"logits_processors": {"mine": path}}, {"batched_logits_processor": path}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}.*{word}"):
            LLM(folder, load_format="dummy", **options)
