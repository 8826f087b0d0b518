"""From a model's files to its ``Tokenizer``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from headrace.core.errors import CheckpointError, ModelError

from .gguf import tokenizer_from_gguf
from .post import bos_eos_processor
from .tokenizer import Tokenizer

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHER_VOCABULARIES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def load_tokenizer(path: Path, gguf_metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a model folder (``tokenizer.json``), or of a ``.gguf`` file.

    ``gguf_metadata`` saves reading the header again when the caller has it. Raises ``ModelError`` if there is no
    tokenizer, ``CheckpointError`` if it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(path)
    if gguf_metadata is None:
        from headrace.weights.gguf_reader import read_header

        gguf_metadata = read_header(path).metadata
    return tokenizer_from_gguf(gguf_metadata, path)


def _from_folder(folder: Path) -> Tokenizer:
    config = _read_json(folder / "tokenizer_config.json")
    special = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
    if (folder / "tokenizer.json").is_file():
        backend = _from_file(folder / "tokenizer.json")
    else:
        backend = _through_transformers(folder)
    _add_tokens(backend, config, special, folder)
    if backend.post_processor is None:
        bos = special.get("bos_token") if config.get("add_bos_token") is True else None
        eos = special.get("eos_token") if config.get("add_eos_token") is True else None
        processor = bos_eos_processor(backend, bos, eos)
        if processor is not None:
            backend.post_processor = processor
    return Tokenizer(
        backend,
        eos_ids=_eos_ids(folder, backend, special.get("eos_token")),
        special_tokens=special,
        chat_templates=_chat_templates(folder, config),
    )


def _from_file(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare Exception for whatever is wrong with the file
        raise CheckpointError(f"{path}: not a tokenizer that this version of tokenizers reads: {error}") from error


def _through_transformers(folder: Path) -> tokenizers.Tokenizer:
    """Vocabularies in other forms: transformers converts them."""
    found = [name for name in _OTHER_VOCABULARIES if (folder / name).is_file()]
    if not found:
        raise ModelError(
            f"{folder}: no tokenizer.json and no other vocabulary. Give tokenizer=..., or skip_tokenizer_init=True and "
            "token ids as prompts."
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelError(
            f"{folder}: no tokenizer.json, only {', '.join(found)}, which needs transformers to be read: "
            "pip install transformers"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"{folder}: transformers could not read {', '.join(found)}: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(f"{folder}: {type(tokenizer).__name__} has no form for the tokenizers library: not supported")
    return backend


def _special_tokens(config: Mapping[str, Any], token_map: Mapping[str, Any]) -> dict[str, str]:
    """Role to text. An entry is a string, or an object with ``content``."""
    special = {}
    for role in _ROLES:
        entry = config.get(role) or token_map.get(role)
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str):
            special[role] = text
    return special


def _add_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str], folder: Path
) -> None:
    """What tokenizer_config.json adds to tokenizer.json, under the ids that it names."""
    known = backend.get_added_tokens_decoder()
    added = config.get("added_tokens_decoder", {})
    try:
        entries = sorted((int(number), AddedToken(**_token_fields(entry))) for number, entry in added.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: damaged added_tokens_decoder: {error}") from error
    for number, token in entries:
        if number in known:
            continue
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != number:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: added token {token.content!r} has id {number} there, but "
                f"{backend.token_to_id(token.content)} in the vocabulary"
            )
    for text in special.values():
        token_id = backend.token_to_id(text)
        if token_id is not None and token_id not in backend.get_added_tokens_decoder():
            backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])


def _token_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: entry[name] for name in names if name in entry}


def _eos_ids(folder: Path, backend: tokenizers.Tokenizer, eos_token: str | None) -> set[int]:
    """The end ids of generation_config.json (else of config.json), and the tokenizer's own."""
    named = _read_json(folder / "generation_config.json").get("eos_token_id")
    if named is None:
        named = _read_json(folder / "config.json").get("eos_token_id")
    ids = set(named) if isinstance(named, list) else {named}
    ids.add(None if eos_token is None else backend.token_to_id(eos_token))
    return ids - {None}


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: files of their own before those in tokenizer_config.json."""
    given = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        templates |= {entry["name"]: entry["template"] for entry in given}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return templates


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if the file is not there."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
