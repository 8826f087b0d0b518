"""Folders: ids, special tokens, ends and templates, as transformers reads them from the same files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from templates import CHATML
from transformers import AutoTokenizer
from vocabularies import TEXTS, byte_fallback, byte_level, write_folder

from headrace.core.errors import CheckpointError, ModelError, RequestError
from headrace.tokenizer.load import load_tokenizer

CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False},
    "unk_token": "<unk>",
    "chat_template": CHATML,
}


@pytest.mark.parametrize("make", [byte_level, lambda: byte_fallback(False), lambda: byte_fallback(True)])
def test_ids_and_text_are_those_of_transformers(tmp_path: Path, make: Any) -> None:
    write_folder(tmp_path, make(), tokenizer_config=CONFIG)
    ours, reference = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))
    for text in [*TEXTS, "a<s>b</s> c <think>naïve added", "<|im_start|>user\nHi<|im_end|>\n"]:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == reference.encode(text, add_special_tokens=special)
            assert ours.decode(ids, skip_special_tokens=special) == reference.decode(
                ids, skip_special_tokens=special, clean_up_tokenization_spaces=False
            )
    messages = [{"role": "user", "content": "Hi"}]
    assert ours.chat(messages) == reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.vocab_size == len(reference)
    assert ours.eos_ids == {reference.eos_token_id}
    assert ours.bos_id == reference.bos_token_id


def test_saved_truncation_and_padding_are_switched_off(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    tokenizer = load_tokenizer(write_folder(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_tokens_that_only_the_configuration_adds(tmp_path: Path) -> None:
    size = byte_level().get_vocab_size()
    added = {
        str(size): {"content": "<extra>", "special": True, "normalized": False},
        str(size + 1): {"content": "<plain>", "special": False, "normalized": False},
    }
    write_folder(tmp_path, byte_level(), tokenizer_config=CONFIG | {"added_tokens_decoder": added})
    ours, reference = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))
    ids = ours.encode("a<extra>b<plain>")
    assert ids == reference.encode("a<extra>b<plain>")
    assert size in ids
    assert size + 1 in ids
    assert ours.decode(ids) == "ab<plain>"
    added = {str(size + 5): added[str(size)]}
    write_folder(tmp_path, byte_level(), tokenizer_config=CONFIG | {"added_tokens_decoder": added})
    with pytest.raises(CheckpointError, match=rf"'<extra>' has id {size + 5} there, but {size} in the vocabulary"):
        load_tokenizer(tmp_path)
    write_folder(tmp_path, byte_level(), tokenizer_config=CONFIG | {"added_tokens_decoder": {"x": 1}})
    with pytest.raises(CheckpointError, match="damaged added_tokens_decoder"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ["</s>"]),
        ({"config": {"eos_token_id": 4}}, ["</s>", "<|im_end|>"]),
        (
            {"config": {"eos_token_id": 0}, "generation_config": {"eos_token_id": [3, 4]}},
            ["</s>", "<|im_start|>", "<|im_end|>"],
        ),
    ],
)
def test_ends_of_sequence(tmp_path: Path, files: dict[str, Any], expected: list[str]) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, byte_level(), tokenizer_config=CONFIG, **files))
    assert tokenizer.eos_ids == {tokenizer.token_to_id(token) for token in expected}


def test_begin_and_end_tokens_where_the_vocabulary_says_nothing(tmp_path: Path) -> None:
    flags = {"add_bos_token": True, "add_eos_token": True}
    tokenizer = load_tokenizer(write_folder(tmp_path, byte_level(), tokenizer_config=CONFIG | flags))
    assert tokenizer.decode(tokenizer.encode("Hi"), skip_special_tokens=False) == "<s>Hi</s>"
    assert tokenizer.decode(tokenizer.encode("Hi", add_special_tokens=False), skip_special_tokens=False) == "Hi"
    # Where it says something, that stands.
    tokenizer = load_tokenizer(write_folder(tmp_path, byte_fallback(False), tokenizer_config=CONFIG | flags))
    assert tokenizer.decode(tokenizer.encode("Hi"), skip_special_tokens=False) == "<s>Hi"


def test_where_templates_come_from(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    folder = write_folder(tmp_path, byte_level(), tokenizer_config=CONFIG | {"chat_template": named})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat(messages) == "plain"
    assert tokenizer.chat(messages, tools=[{"type": "function"}]) == "with tools"
    assert tokenizer.chat(messages, chat_template="{{ extra }}", extra="given") == "given"
    (folder / "chat_template.jinja").write_text("from a file")
    assert load_tokenizer(folder).chat(messages) == "from a file"
    (folder / "chat_template.jinja").unlink()
    write_folder(folder, byte_level(), tokenizer_config=CONFIG | {"chat_template": named[1:]})
    with pytest.raises(RequestError, match="no default chat template, only tool_use"):
        load_tokenizer(folder).chat(messages)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match="no chat template; give chat_template, or send"):
        tokenizer.chat(messages)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json and no other vocabulary.*skip_tokenizer_init"):
        load_tokenizer(tmp_path)
    write_folder(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not valid JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer that this version"):
        load_tokenizer(tmp_path)


def test_other_vocabularies_go_through_transformers(tmp_path: Path) -> None:
    model = json.loads(byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]))
    fields = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer.backend, tokenizers.Tokenizer)
    assert tokenizer.decode(tokenizer.encode(TEXTS[2])) == TEXTS[2]
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from headrace.tokenizer.load import load_tokenizer\n"
        "from headrace.core.errors import ModelError\n"
        "try: load_tokenizer(sys.argv[1])\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "only vocab.json, which needs transformers to be read: pip install transformers" in done.stdout


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, byte_level()))
    with pytest.raises(RequestError, match="valid Unicode, found"):
        tokenizer.encode("a\ud800")


def test_a_long_text_stops_no_other_thread(tmp_path: Path) -> None:
    """A server streams while it tokenises a long prompt."""
    tokenizer = load_tokenizer(write_folder(tmp_path, byte_level()))
    turns, done = 0, threading.Event()

    def others() -> None:
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    thread = threading.Thread(target=others)
    thread.start()
    try:
        before = turns
        tokenizer.encode("the river runs " * 100_000)
        during = turns - before
    finally:
        done.set()
        thread.join()
    assert during > 5


def test_a_folder_is_read_without_torch_or_transformers(tmp_path: Path) -> None:
    write_folder(tmp_path, byte_level(), tokenizer_config=CONFIG)
    code = (
        "import sys\nfrom headrace.tokenizer.load import load_tokenizer\n"
        "load_tokenizer(sys.argv[1]).chat([{'role': 'user', 'content': 'Hi'}])\n"
        "print([name for name in ('torch', 'transformers', 'jinja2', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
