"""The second built-in model: windows, sandwich norms, a vocabulary of 262,144, and weights in four block forms."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from real_reference import reference

from headrace import LLM, KvCacheConfig, SamplingParams
from headrace.tokenizer.load import load_tokenizer
from headrace.tokenizer.tokenizer import Tokenizer
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.gguf_reader import read_header
from headrace.weights.resolve import resolve_model

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = (
    "The capital of France is",
    "Der Rhein ist ein Fluss, der",
    "def fibonacci(n):\n    if n < 2:\n",
)
TEXTS = (
    "Hello, world!",
    "  two  spaces, a\ttab\n\n\nand lines ",
    "naïve café — 日本語 🙂🚀 \u200d👩‍👩‍👧",
    "1234567890 3.14159 <b>bold</b> <start_of_turn>user",
    "the quick brown fox jumps over antidisestablishmentarianism",
    unicodedata.normalize("NFD", "Ångström"),
)


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve_model("gemma3-270m").path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def pieces_by_hand(path: Path) -> Callable[[str], list[int]]:
    """Sentencepiece's rule in plain Python: join the two neighbours whose piece has the best score, leftmost first."""
    metadata = read_header(path).metadata
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    scores = metadata["tokenizer.ggml.scores"].tolist()
    ids = {token: number for number, token in enumerate(tokens)}
    score = {token: value for token, value, kind in zip(tokens, scores, kinds, strict=True) if kind in (1, 4)}

    def encode(text: str) -> list[int]:
        parts = list(text.replace(" ", "\u2581"))
        while True:
            pairs = [
                (-score[joined], at) for at in range(len(parts) - 1) if (joined := parts[at] + parts[at + 1]) in score
            ]
            if not pairs:
                break
            at = min(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found = []
        for part in parts:
            found += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        return found

    return encode


def test_configuration(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    config = checkpoint.config()
    checkpoint.close()
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert (config["num_hidden_layers"], config["hidden_size"], config["head_dim"]) == (18, 640, 256)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 1)
    assert config["vocab_size"] == 262_144
    assert config["sliding_window"] == 512
    assert [layer for layer, kind in enumerate(config["layer_types"]) if kind == "full_attention"] == [5, 11, 17]
    assert config["tie_word_embeddings"] is True


def test_pieces_are_those_of_sentencepiece(tokenizer: Tokenizer, pieces_by_hand: Callable[[str], list[int]]) -> None:
    for text in TEXTS:
        # Control and user-defined tokens are cut out before anything is joined; texts between them are compared.
        plain = text.replace("<start_of_turn>", "").replace("<b>", "").replace("</b>", "")
        ids = tokenizer.encode(plain, add_special_tokens=False)
        if "\n\n" not in plain:
            assert ids == pieces_by_hand(plain)
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == f"<bos>{text}"
    assert tokenizer.encode("a<start_of_turn>b", add_special_tokens=False)[1] == tokenizer.token_to_id(
        "<start_of_turn>"
    )
    assert tokenizer.eos_ids == {1, tokenizer.token_to_id("<end_of_turn>")}
    assert not tokenizer.has_chat_template


def test_greedy_text_equals_transformers(path: Path) -> None:
    cache = KvCacheConfig(max_tokens=2048)
    with LLM("gemma3-270m", dtype="float32", kv_cache_config=cache, num_threads=1) as llm:
        params = SamplingParams(max_tokens=16, ignore_eos=True)
        ours = llm.generate(list(PROMPTS), params, use_tqdm=False)
    model = reference(path, torch.float32)
    for output in ours:
        ids = torch.tensor([output.prompt_token_ids])
        assert ids[0, 0] == 2
        theirs = model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False, pad_token_id=0)
        assert output.outputs[0].token_ids == theirs[0, ids.shape[1] :].tolist()
