"""A tokenizer for the tiny models: one token a byte, and made-up words for the ids beyond."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def write_tokenizer(
    folder: Path, vocab_size: int, chat_template: str | None = None, beyond: tuple[str, ...] = ()
) -> None:
    """Ids 0 to 2 are pad, begin and end; then the 256 bytes; the rest are words that no text encodes to. ``beyond``:
    special tokens with the ids from ``vocab_size`` on."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[letter] = len(vocab)
    for extra in range(len(vocab), vocab_size):
        vocab[f"w{extra}"] = extra
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", *beyond])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if chat_template is not None:
        named["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
