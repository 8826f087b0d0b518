"""Small real vocabularies, trained on the spot, of the kinds that models use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The river turns the wheel, and the wheel turns the stone. Don't stop: it's 1234 turns, 3.14 an hour!",
    "Der Bach läuft über das Wehr – größer als gestern. Ça coule, déjà vu, naïve façade.",
    "水は車輪を回し、車輪は石を回す。溪水推动水车。물이 바퀴를 돌린다. الماء يدير العجلة. नदी चक्की घुमाती है।",
    "def turn(stone):\n    return stone ** 2  # twice\n\n\n\tclass Mill:\n\r\n",
    "👩‍👩‍👧‍👦 family, flag 🇫🇷, wave 👋🏽, e\u0301 combined, \u00a0 hard space, \u200b none",
    "",
    " ",
    "  leading and   inner  spaces  ",
]

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PLAIN_ADDED = ["<think>", "naïve added"]


@cache
def _byte_level_json() -> str:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken(token, normalized=False) for token in PLAIN_ADDED])
    return backend.to_str()


def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE, split as SmolLM2's vocabulary splits."""
    return tokenizers.Tokenizer.from_str(_byte_level_json())


def byte_fallback(space_first: bool) -> tokenizers.Tokenizer:
    """Sentencepiece's BPE: Llama 2's kind writes a space before a text, Gemma's does not."""
    fields = byte_fallback_fields(space_first)
    tokens = fields["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens[3 + 256 :]
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend("▁")] if space_first else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    after = [decoders.Strip(" ", 1, 0)] if space_first else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL[:3]])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return backend


def byte_fallback_fields(space_first: bool) -> dict[str, Any]:
    """GGUF metadata of such a vocabulary: pieces in the order of their merges, scores falling."""
    pieces = _pieces()
    tokens = [*SPECIAL[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": np.array([0.0] * 259 + [-float(rank) for rank in range(len(pieces))], np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": space_first,
    }


@cache
def _pieces() -> tuple[str, ...]:
    """Pieces of Latin text only, so that everything else falls back to bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    backend.train_from_iterator([*TEXTS[:2], *TEXTS[3:4]], trainer)
    vocab = backend.get_vocab()
    # Those of one character have no merge and come last.
    return tuple(sorted(vocab, key=lambda token: (len(token) == 1, vocab[token])))


def word_piece() -> tokenizers.Tokenizer:
    """BERT's kind: its decoder writes spaces, so it is not one of bytes."""
    words = ["[UNK]", "[SEP]", "the", "river", "turn", "##s", "##ing", ".", "wheel", "'", "s"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(["[SEP]"])
    return backend


def byte_level_fields(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of the byte-level vocabulary."""
    model = json.loads(_byte_level_json())
    tokens = dict(model["model"]["vocab"]) | {token["content"]: token["id"] for token in model["added_tokens"]}
    types = np.ones(len(tokens), np.int32)
    for token in model["added_tokens"]:
        types[token["id"]] = 3 if token["special"] else 4
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": sorted(tokens, key=tokens.__getitem__),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    for key, value in changes.items():
        fields[f"tokenizer.ggml.{key}"] = value
    return {key: value for key, value in fields.items() if value is not None}


def write_folder(folder: Path, backend: tokenizers.Tokenizer, **files: Mapping[str, Any]) -> Path:
    """tokenizer.json and JSON files by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for stem, fields in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder
