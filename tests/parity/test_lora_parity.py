"""Adapters made by peft, on every family: prompt logprobs against peft's own model in fp32, several in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headrace import LLM, KvCacheConfig, LoRARequest, SamplingParams
from headrace.eval.tiny import make, random_prompts, save
from tiny_adapters import NOT_ADAPTED

peft = pytest.importorskip("peft", reason="peft is what adapters are compared with: pip install peft")

TOLERANCE = 5e-4
"""As for the models alone."""

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 16},
    "patterns": {
        "r": 3,
        "lora_alpha": 5,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 6, "layers.1.mlp.down_proj": 2, "out_proj": 9},
        "alpha_pattern": {"o_proj": 11, r".*\.up_proj": 2},
    },
}
QUICK = ("llama", "phi3", "deepseek-v3")
SLOW = (
    *("qwen2", "qwen3", "gemma3", "mistral", "mixtral", "nemotron", "qwen3-moe", "gpt-oss", "llama4", "exaone4"),
    *("llama-biases", "nemotron-h", "qwen3-next", "deepseek-v3-plain"),
)
EXPERTS = ("gate_proj", "up_proj", "down_proj")
NOT_BY_PEFT = {
    **dict.fromkeys(("deepseek-v3", "deepseek-v3-plain", "qwen3-moe", "qwen3-next"), EXPERTS),
    "nemotron-h": ("out_proj",),
}
"""Last parts of names that peft turns into parameters of experts in these models, or refuses."""


def linear_modules(model: nn.Module, variant: str) -> list[str]:
    """What takes an adapter: linear maps of the layers, but for experts, routers and what is absorbed."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers." in name
        if not any(f"{part}." in f"{name}." for part in (*NOT_ADAPTED, *NOT_BY_PEFT.get(variant, ())))
    ]


def adapted(model: Any, modules: list[str], folder: Path, config: dict[str, Any], seed: int) -> Any:
    """peft's model over ``model`` with a random adapter, which is saved to ``folder``."""
    made = peft.get_peft_model(model, peft.LoraConfig(target_modules=modules, **config)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    made.save_pretrained(folder)
    return made


def expected(model: Any, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    return logprobs[:-1].gather(1, torch.tensor(prompt[1:])[:, None]).squeeze(1)


@pytest.mark.parametrize("variant", [*QUICK, *(pytest.param(variant, marks=pytest.mark.slow) for variant in SLOW)])
def test_adapters_give_what_peft_gives(variant: str, tmp_path: Path) -> None:
    model = make(variant)
    folder = save(model, tmp_path / "model")
    prompts = random_prompts(model.config.vocab_size, [12, 40, 70])
    modules = linear_modules(model, variant)
    wanted = [[expected(model, prompt) for prompt in prompts]]
    requests: list[LoRARequest | None] = [None]
    for number, (name, config) in enumerate(CONFIGS.items()):
        path = tmp_path / name
        made = adapted(model, modules, path, config, number)
        wanted.append([expected(made, prompt) for prompt in prompts])
        made.unload()
        requests.append(LoRARequest(name, number, str(path)))
    cache = KvCacheConfig(max_tokens=4096)
    options = SamplingParams(max_tokens=2, prompt_logprobs=0, end_id=-1)
    with LLM(
        folder, dtype="float32", num_threads=1, skip_tokenizer_init=True, enable_lora=True, kv_cache_config=cache,
        max_num_tokens=40,
    ) as llm:  # fmt: skip
        each = [(prompt, request) for request in requests for prompt in prompts]
        outputs = llm.generate([p for p, _ in each], options, False, [request for _, request in each])
        assert llm.get_stats()[-1]["witnesses"]["adapter_rows"] >= 2 * sum(map(len, prompts))
    worst = 0.0
    for output, want in zip(outputs, (one for of_adapter in wanted for one in of_adapter), strict=True):
        entries = output.outputs[0].prompt_logprobs[1:]
        got = torch.tensor([next(iter(entry.values())).logprob for entry in entries])
        worst = max(worst, (got - want).abs().max().item())
    print(f"{variant}: largest difference of a prompt logprob {worst:.1e}")
    assert worst < TOLERANCE
    # The adapters do something, and not the same.
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (wanted[one][0] - wanted[other][0]).abs().max() > 0.1
