"""Vocabularies for the tests of guided decoding, and outputs replayed through a sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from headrace.core.guided_params import GuidedDecodingParams
from headrace.core.plan import SlotInit
from headrace.core.sampling_params import SamplingParams
from headrace.guided import Grammar, Vocabulary, vocabulary_of
from headrace.ops.native.core import is_available
from headrace.sampling import GuidedSampler, NativeSampler, Sampler, SampleRows, TorchSampler
from headrace.tokenizer.tokenizer import Tokenizer

EOS = 2
N_PADDING = 9
"""Logits of the model beyond its tokens."""
PROMPT = 3


def tiny_tokenizer() -> Tokenizer:
    """Bytes, and pairs of bytes as they are frequent in JSON."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: rank for rank, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    merges = [
        ('"', ":"),
        ("{", '"'),
        ("[", "["),
        ('"', ","),
        ("Ġ", '"'),
        ("0", "0"),
        ("1", "0"),
        ("t", "r"),
        ("u", "e"),
    ]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    return Tokenizer(backend, eos_ids=[EOS])


def tiny_vocabulary() -> Vocabulary:
    tokenizer = tiny_tokenizer()
    return vocabulary_of(tokenizer, tokenizer.vocab_size + N_PADDING, frozenset({EOS}))


def samplers(vocab_size: int) -> list[Sampler]:
    inner = [TorchSampler(1, vocab_size), *([NativeSampler(1, vocab_size)] if is_available() else [])]
    return [GuidedSampler(one, vocab_size) for one in inner]


def replay(sampler: Sampler, grammar: Grammar, tokens: list[int], vocab_size: int, n_drafts: int = 0) -> int:
    """A model that wants ``tokens``, then the end. How many of them it gets to give before something else comes; one
    more if it ends there. Drafts are the tokens that follow, the last of them wrong."""
    wanted = [*tokens, EOS]
    sampling = SamplingParams(max_tokens=None)
    sampler.bind(SlotInit(0, 7, (5,) * PROMPT, PROMPT, 0, sampling, 1, 0, frozenset({EOS}), frozenset({EOS}), 10**6,
                          grammar=grammar))  # fmt: skip
    done = 0
    while done < len(wanted):
        drafts = list(wanted[done : done + n_drafts])
        if len(drafts) > 1:
            drafts[-1] = (drafts[-1] + 1) % vocab_size
        history = np.array([5] * PROMPT + wanted[:done], np.int32)
        n = 1 + len(drafts)
        rows = SampleRows(
            slots=np.zeros(n, np.int64),
            positions=len(history) + np.arange(n),
            first_rows=np.zeros(1, np.int64),
            drafts=[tuple(drafts)],
            history=lambda slot, known=history: known,
        )
        logits = torch.zeros(n, vocab_size)
        for row in range(n):
            logits[row, wanted[min(done + row, len(wanted) - 1)]] = 9.0
        outcome = sampler.sample(rows, logits)
        before = done
        for row, token in enumerate(outcome.tokens.tolist()):
            if done == len(wanted) or token != wanted[done]:
                return done
            done += 1
            if row == len(drafts) or token != drafts[row]:
                break
        assert done > before
    return done


def accepts(sampler: Sampler, grammar: Grammar, vocabulary: Vocabulary, text: str, n_drafts: int = 0) -> bool:
    """Whether a model can give ``text`` and end."""
    tokens = vocabulary.tokenizer.encode(text, add_special_tokens=False)
    return replay(sampler, grammar, tokens, len(vocabulary.tokens), n_drafts) == len(tokens) + 1


def params(**fields: object) -> GuidedDecodingParams:
    return GuidedDecodingParams(**fields)


SUITE_CACHE = Path(__file__).parents[2] / "build" / "json-schema-suite"
