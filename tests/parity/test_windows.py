"""Windows set by hand equal transformers under masks that hide what the windows hide, on every kind of cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ModelRun
from test_parity import MAX_TOKENS, TOLERANCE, check
from transformers import PreTrainedModel

from headrace import LLM, ConfigError, KvCacheConfig, SamplingParams
from headrace.eval.tiny import random_prompts
from headrace.models.windows import narrow

WINDOWS = {
    "llama": [8, 40, 256],
    "gemma3-untied-window-40": [36, 100],
    "llama4-chunk-40-odd": [20, 70],
    "gpt-oss": [33],
    "deepseek-v3": [40, 7],
}
"""Of layers that keep everything, slide, have chunks, have sinks, and keep latent vectors."""


@contextmanager
def _masked(model: PreTrainedModel, windows: Sequence[int]) -> Iterator[None]:
    """Rows of the reference's layers see the last ``windows[i]`` positions at most."""
    layers = [module for name, module in model.named_modules() if name.endswith("self_attn")]

    def hook(window: int) -> Callable[..., Any]:
        def narrower(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            mask = kwargs["attention_mask"]
            row, key = torch.arange(mask.shape[-2])[:, None], torch.arange(mask.shape[-1])
            hidden = torch.where(key <= row - window, torch.finfo(mask.dtype).min, 0.0)
            return args, {**kwargs, "attention_mask": torch.minimum(mask, hidden.to(mask.dtype))}

        return narrower

    hooks = [
        layer.register_forward_pre_hook(hook(windows[index % len(windows)]), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


@pytest.mark.parametrize("variant", WINDOWS)
def test_rows_see_what_the_windows_say(variant: str, references: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    model, folder = references(variant)
    prompts = random_prompts(model.config.vocab_size)
    run = ModelRun(folder, chunk=33, windows=WINDOWS[variant])
    outputs = run.run(prompts, MAX_TOKENS)
    with _masked(model, WINDOWS[variant]):
        assert check(model, prompts, outputs) < TOLERANCE
    as_it_is = ModelRun(folder, chunk=33).run(prompts, MAX_TOKENS)
    assert [one.tokens for one in as_it_is] != [one.tokens for one in outputs]


def test_what_does_nothing_or_cannot_be_is_refused(references: Callable[[str], tuple[PreTrainedModel, Path]]) -> None:
    layers = ModelRun(references("mistral-window-40-odd-mqa")[1]).model.cached_layers()
    with pytest.raises(ConfigError, match=r"max_attention_window=\[40, 256\] takes nothing away: .*max_seq_len=256"):
        narrow(layers, [40, 256], 256)
    with pytest.raises(ConfigError, match=r"has 4 windows, and the model 3 layers with attention"):
        narrow(layers, [8, 8, 8, 8], 256)
    with pytest.raises(ConfigError, match="no layer of this model keeps keys"):
        narrow([], [8], 256)
    assert narrow(layers, [8, 40], 256) == (0, 2)
    states = ModelRun(references("nemotron-h-experts")[1]).model.cached_layers()
    (place,) = narrow(states, [8], 256)
    assert [type(layer.cache_spec).__name__ for layer in states].count("SlidingKV") == 1
    assert states[place].cache_spec.window == 8


def _outputs(folder: Path, prompts: Sequence[list[int]], **cache: Any) -> tuple[list[Any], dict[str, int]]:
    params = SamplingParams(max_tokens=40, ignore_eos=True, detokenize=False, logprobs=1)
    config = KvCacheConfig(max_tokens=1024, **cache)
    with LLM(str(folder), dtype="float32", skip_tokenizer_init=True, num_threads=1, kv_cache_config=config) as llm:
        outputs = [one.outputs[0] for one in llm.generate(prompts, params, use_tqdm=False)]
        llm.check_integrity()
        return [(one.token_ids, one.logprobs) for one in outputs], llm.get_stats()[-1]["witnesses"]


def test_llama_with_a_window_is_mistral(tmp_path: Path, references: Callable[[str], Any]) -> None:
    """The same weights, the window in the configuration or set by hand: the same bits, and as few blocks."""
    model, folder = references("mistral-window-40-odd-mqa")
    other = tmp_path / "llama"
    other.mkdir()
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    del config["sliding_window"]
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    (other / "model.safetensors").symlink_to(folder / "model.safetensors")
    prompts = random_prompts(model.config.vocab_size, [5, 100, 180])
    mistral, counts = _outputs(folder, prompts)
    assert counts["blocks_freed_by_max_attention_window"] == 0
    llama, narrowed = _outputs(other, prompts, max_attention_window=[40])
    assert llama == mistral
    freed = counts["blocks_freed_out_of_window"]
    assert narrowed["blocks_freed_by_max_attention_window"] == narrowed["blocks_freed_out_of_window"] == freed > 6
    assert _outputs(other, prompts)[0] != mistral


def test_an_encoder_has_no_windows(references: Callable[[str], Any]) -> None:
    config = KvCacheConfig(max_attention_window=[8])
    with pytest.raises(ConfigError, match=r"kv_cache_config\.max_attention_window: the model is an encoder"):
        LLM(str(references("bert")[1]), skip_tokenizer_init=True, kv_cache_config=config)
    with pytest.raises(ConfigError, match="max_attention_window"):
        LLM("nothing", kv_cache_config={"max_attention_window": []})
