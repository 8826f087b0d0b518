"""The composed reference of DeciLM is itself held to transformers' Llama, where the two must meet."""

from __future__ import annotations

import torch
import transformers

from headrace.eval import decilm_reference as decilm
from headrace.eval.tiny import make, random_prompts


def llama_of(model: decilm.DeciLM, n_kv_heads: int, inner_size: int) -> transformers.PreTrainedModel:
    """Llama of the same sizes with the tensors that the two share; those that are missing are zero."""
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=inner_size, head_dim=c.head_dim,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=n_kv_heads, rms_norm_eps=c.rms_norm_eps, tie_word_embeddings=False,
        max_position_embeddings=c.max_position_embeddings, attn_implementation="eager",
        rope_parameters={**c.rope_scaling, "rope_theta": c.rope_theta},
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    mine = dict(model.named_parameters())
    for name, parameter in llama.named_parameters():
        parameter.copy_(mine.get(name, torch.zeros(())))
    return llama


def test_equal_layers_are_llama() -> None:
    block = {"attention": decilm.attention(n_heads_in_group=2), "ffn": decilm.ffn(ffn_mult=1.5)}
    model = make("decilm", block_configs=[block] * 3)
    tokens = torch.tensor(random_prompts(model.config.vocab_size, [90]))
    assert (model(tokens).logits - llama_of(model, 2, 256)(tokens).logits).abs().max() < 5e-4


def test_what_is_gone_is_llama_with_zeros() -> None:
    both = {"attention": decilm.attention(n_heads_in_group=2), "ffn": decilm.ffn(ffn_mult=1.5)}
    blocks = [both, {**both, "attention": decilm.attention(no_op=True)}, {**both, "ffn": decilm.ffn(no_op=True)}]
    model = make("decilm", block_configs=blocks)
    tokens = torch.tensor(random_prompts(model.config.vocab_size, [90]))
    assert (model(tokens).logits - llama_of(model, 2, 256)(tokens).logits).abs().max() < 5e-4
