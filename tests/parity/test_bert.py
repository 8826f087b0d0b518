"""BERT with labels against transformers in fp32; its bits in company; and what an encoder refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertForSequenceClassification

from headrace import LLM, ConfigError, KvCacheConfig, NGramDecodingConfig, PoolingParams, RequestError
from headrace.eval import tiny

VOCAB, CLS, SEP, FIRST = 311, 1, 2, 5
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOLERANCE = 1e-4


def write_wordpiece(folder: Path) -> None:
    """Words of letters, and BERT's way to put special tokens around one text or two."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    tokenizer.add_special_tokens(names[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def make(folder: Path, n_labels: int = 3, **changes: Any) -> BertForSequenceClassification:
    """A tiny checkpoint with a tokenizer."""
    model = tiny.make("bert", num_labels=n_labels, **changes)
    write_wordpiece(tiny.save(model, folder))
    return model


def prompts(lengths: tuple[int, ...] = (1, 2, 3, 31, 32, 33, 40, 70, 200)) -> list[list[int]]:
    rng = random.Random(4)
    return [[CLS, *(rng.randrange(FIRST, VOCAB) for _ in range(length - 1))] for length in lengths]


def logits(model: BertForSequenceClassification, ids: list[int], types: list[int] | None = None) -> torch.Tensor:
    given = {} if types is None else {"token_type_ids": torch.tensor([types])}
    return model(torch.tensor([ids]), **given).logits[0]


def engine(folder: Path, **settings: Any) -> LLM:
    return LLM(folder, **{"dtype": "float32", "num_threads": 1, **settings})


def assert_near(got: np.ndarray, want: torch.Tensor) -> None:
    assert np.abs(got - want.numpy()).max() <= TOLERANCE * max(1.0, want.abs().max().item())


def test_labels_equal_transformers(tmp_path: Path) -> None:
    model = make(tmp_path)
    given = prompts()
    with engine(tmp_path, max_num_tokens=256) as llm:
        raw = llm.encode(given, PoolingParams(use_activation=False), use_tqdm=False)
        chances = llm.encode(given, use_tqdm=False)
        spread = max(np.abs(one.data - raw[0].data).max() for one in raw)
        assert spread > 0.1, "prompts that all give the same prove nothing"
        for ids, one, chance in zip(given, raw, chances, strict=True):
            assert_near(one.data, logits(model, ids))
            assert_near(chance.data, logits(model, ids).softmax(-1))
        assert llm.get_stats()[-1]["witnesses"]["batched_steps"] > 0
        assert llm.effective_config["kv_cache_tokens"] == 0
        llm.check_integrity()


def test_two_texts_have_types(tmp_path: Path) -> None:
    model = make(tmp_path, n_labels=1)
    with engine(tmp_path) as llm:
        pair = llm.encode({"prompt": "ab c", "text_pair": "de"}, PoolingParams(use_activation=False))
        ids = [CLS, *(llm.tokenizer.token_to_id(token) for token in ("a", "##b", "c")), SEP]
        second = [llm.tokenizer.token_to_id("d"), llm.tokenizer.token_to_id("##e"), SEP]
        assert pair.prompt_token_ids == ids + second
        types = [0] * len(ids) + [1] * len(second)
        assert_near(pair.data, logits(model, ids + second, types))
        assert (logits(model, ids + second, types) - logits(model, ids + second)).abs().max() > 0.01
        # In the same slot, a single text has no second one.
        single = [CLS, *range(FIRST, FIRST + 9), SEP]
        assert_near(llm.encode(single, PoolingParams(use_activation=False)).data, logits(model, single))
        score = llm.encode({"prompt": "ab c", "text_pair": "de"})
        assert_near(score.data, torch.sigmoid(logits(model, ids + second, types)))


def test_old_files_call_norms_gamma_and_beta(tmp_path: Path) -> None:
    model = make(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert set(old) != set(tensors)
    old["bert.embeddings.position_ids"] = torch.arange(200)[None]
    save_file(old, file, metadata={"format": "pt"})
    with engine(tmp_path) as llm:
        ids = prompts((40,))[0]
        assert_near(llm.encode(ids, PoolingParams(use_activation=False)).data, logits(model, ids))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_those_of_the_prompt_alone(dtype: str, tmp_path: Path) -> None:
    make(tmp_path)
    given = prompts() * 2
    pairs = [{"prompt": "ab " * n, "text_pair": "c de " * (9 - n)} for n in range(1, 9)]
    jobs = [*given, *pairs]
    with engine(tmp_path, dtype=dtype, max_batch_size=1, disable_overlap_scheduler=True) as llm:
        plain = [llm.encode(job).data for job in jobs]
        is_exact = set(llm.effective_config["operators"].values()) == {"native"}
    assert len({one.tobytes() for one in plain}) == len(jobs) - len(prompts())
    for rows, threads in ((200, 1), (256, 2), (2000, 2)):
        with engine(tmp_path, dtype=dtype, max_num_tokens=rows, num_threads=threads) as llm:
            for output, want in zip(llm.encode(jobs, use_tqdm=False), plain, strict=True):
                if is_exact:
                    assert output.data.tobytes() == want.tobytes()
                else:
                    assert np.abs(output.data - want).max() < 0.05
            assert llm.get_stats()[-1]["witnesses"]["batched_steps"] > 0


def test_what_an_encoder_cannot_do_is_said(tmp_path: Path) -> None:
    make(tmp_path)
    for settings in (
        {"enable_chunked_prefill": True},
        {"kv_cache_config": KvCacheConfig(max_tokens=512)},
        {"speculative_config": NGramDecodingConfig(max_draft_len=2)},
    ):
        with pytest.raises(ConfigError, match="is an encoder") as refused:
            engine(tmp_path, **settings)
        assert next(iter(settings)) in str(refused.value)
    with engine(tmp_path, max_num_tokens=64) as llm:
        with pytest.raises(RequestError, match="exceed max_num_tokens=64, and the model reads a prompt as a whole"):
            llm.encode(prompts((65,))[0])
        assert llm.encode(prompts((64,))[0]).data.shape == (3,)
        with pytest.raises(RequestError, match="gives classification, no text"):
            llm.generate([CLS, 7])
        for params, field in (
            ({"pooling_type": "mean"}, "pooling_type"),
            ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ):
            with pytest.raises(RequestError) as wrong:
                llm.encode([CLS, 7, 8, 9], PoolingParams(**params))
            assert wrong.value.param == field
        with pytest.raises(RequestError, match="text_pair is a text"):
            llm.encode({"prompt": "a", "text_pair": 5})
