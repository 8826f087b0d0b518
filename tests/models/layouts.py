"""What the files of published models hold: names and shapes of their tensors, written down apart from the models' code.

A row is a name and a shape. ``[0-5,8,10-20/2]`` in a name stands for the numbers from 0 to 5, 8, and every second from
10 to 20. Tensors of other models' layers in the same files (multi-token prediction, vision towers) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

_GQA = """
model.layers.[0-{last}].self_attn.q_proj.weight  {q} {h}
model.layers.[0-{last}].self_attn.k_proj.weight  {kv} {h}
model.layers.[0-{last}].self_attn.v_proj.weight  {kv} {h}
model.layers.[0-{last}].self_attn.o_proj.weight  {h} {q}
"""
_ENDS = """
model.embed_tokens.weight  {v} {h}
model.norm.weight  {h}
lm_head.weight  {v} {h}
model.layers.[0-{last}].input_layernorm.weight  {h}
model.layers.[0-{last}].post_attention_layernorm.weight  {h}
"""
_GPT_OSS = (
    _ENDS
    + _GQA
    + """
model.layers.[0-{last}].self_attn.q_proj.bias  4096
model.layers.[0-{last}].self_attn.k_proj.bias  512
model.layers.[0-{last}].self_attn.v_proj.bias  512
model.layers.[0-{last}].self_attn.o_proj.bias  2880
model.layers.[0-{last}].self_attn.sinks  64
model.layers.[0-{last}].mlp.router.weight  {e} 2880
model.layers.[0-{last}].mlp.router.bias  {e}
model.layers.[0-{last}].mlp.experts.gate_up_proj  {e} 2880 5760
model.layers.[0-{last}].mlp.experts.gate_up_proj_bias  {e} 5760
model.layers.[0-{last}].mlp.experts.down_proj  {e} 2880 2880
model.layers.[0-{last}].mlp.experts.down_proj_bias  {e} 2880
"""
)

_MLP = """
model.layers.[{layers}].mlp.gate_proj.weight  {inner} {h}
model.layers.[{layers}].mlp.up_proj.weight  {inner} {h}
model.layers.[{layers}].mlp.down_proj.weight  {h} {inner}
"""
_SUPER_INNER = {
    14336: "0,6-7,43-44,48",
    28672: "1-5,8-10,12-41,46,52,71-79",
    17920: "11",
    7168: "42,45,47,49-51,53,56,60-61",
    5632: "54-55,57-59,64-65,68",
    2816: "62-63,66-67,69-70",
}
_NANO_MAMBA = "0,2,4,7,9,11,14,16,18,21,23,25,28,30,32,35,37,39,41,44,46,48,50"
_NANO_MIXED = "1,3,6,8,10,13,15,17,20,22,24,27,29,31,34,36,38,40,43,45,47,49,51"
_SUPER_ATTENDS = "0-5,8-10,12-41,52,71-79"

_MLLAMA = """
language_model.model.embed_tokens.weight  128264 4096
language_model.model.norm.weight  4096
language_model.lm_head.weight  128256 4096
language_model.model.layers.[0-39].input_layernorm.weight  4096
language_model.model.layers.[0-39].post_attention_layernorm.weight  4096
language_model.model.layers.[0-39].mlp.gate_proj.weight  14336 4096
language_model.model.layers.[0-39].mlp.up_proj.weight  14336 4096
language_model.model.layers.[0-39].mlp.down_proj.weight  4096 14336
language_model.model.layers.[0-2,4-7,9-12,14-17,19-22,24-27,29-32,34-37,39].self_attn.q_proj.weight  4096 4096
language_model.model.layers.[0-2,4-7,9-12,14-17,19-22,24-27,29-32,34-37,39].self_attn.k_proj.weight  1024 4096
language_model.model.layers.[0-2,4-7,9-12,14-17,19-22,24-27,29-32,34-37,39].self_attn.v_proj.weight  1024 4096
language_model.model.layers.[0-2,4-7,9-12,14-17,19-22,24-27,29-32,34-37,39].self_attn.o_proj.weight  4096 4096
language_model.model.layers.[3-38/5].cross_attn.q_proj.weight  4096 4096
language_model.model.layers.[3-38/5].cross_attn.k_proj.weight  1024 4096
language_model.model.layers.[3-38/5].cross_attn.v_proj.weight  1024 4096
language_model.model.layers.[3-38/5].cross_attn.o_proj.weight  4096 4096
language_model.model.layers.[3-38/5].cross_attn.q_norm.weight  128
language_model.model.layers.[3-38/5].cross_attn.k_norm.weight  128
language_model.model.layers.[3-38/5].cross_attn_attn_gate  1
language_model.model.layers.[3-38/5].cross_attn_mlp_gate  1
multi_modal_projector.weight  4096 7680
multi_modal_projector.bias  4096
vision_model.class_embedding  1280
vision_model.patch_embedding.weight  1280 3 14 14
vision_model.gated_positional_embedding.embedding  1601 1280
vision_model.gated_positional_embedding.gate  1
vision_model.gated_positional_embedding.tile_embedding.weight  9 8197120
vision_model.pre_tile_positional_embedding.embedding.weight  9 5120
vision_model.pre_tile_positional_embedding.gate  1
vision_model.post_tile_positional_embedding.embedding.weight  9 5120
vision_model.post_tile_positional_embedding.gate  1
vision_model.layernorm_pre.weight  1280
vision_model.layernorm_pre.bias  1280
vision_model.layernorm_post.weight  1280
vision_model.layernorm_post.bias  1280
vision_model.global_transformer.layers.[0-7].gate_attn  1
vision_model.global_transformer.layers.[0-7].gate_ffn  1
""" + "".join(
    f"""
vision_model.{stack}.input_layernorm.weight  1280
vision_model.{stack}.input_layernorm.bias  1280
vision_model.{stack}.post_attention_layernorm.weight  1280
vision_model.{stack}.post_attention_layernorm.bias  1280
vision_model.{stack}.self_attn.q_proj.weight  1280 1280
vision_model.{stack}.self_attn.k_proj.weight  1280 1280
vision_model.{stack}.self_attn.v_proj.weight  1280 1280
vision_model.{stack}.self_attn.o_proj.weight  1280 1280
vision_model.{stack}.mlp.fc1.weight  5120 1280
vision_model.{stack}.mlp.fc1.bias  5120
vision_model.{stack}.mlp.fc2.weight  1280 5120
vision_model.{stack}.mlp.fc2.bias  1280
"""
    for stack in ("transformer.layers.[0-31]", "global_transformer.layers.[0-7]")
)

LAYOUTS: dict[str, str] = {
    "Llama-3.2-11B-Vision": _MLLAMA,
    "Llama-3.3-70B": (_ENDS + _GQA).format(last=79, h=8192, q=8192, kv=1024, v=128256)
    + _MLP.format(layers="0-79", inner=28672, h=8192),
    "Mixtral-8x7B": (_ENDS + _GQA).format(last=31, h=4096, q=4096, kv=1024, v=32000)
    + """
model.layers.[0-31].block_sparse_moe.gate.weight  8 4096
model.layers.[0-31].block_sparse_moe.experts.[0-7].w1.weight  14336 4096
model.layers.[0-31].block_sparse_moe.experts.[0-7].w2.weight  4096 14336
model.layers.[0-31].block_sparse_moe.experts.[0-7].w3.weight  14336 4096
""",
    "Qwen3-30B-A3B": (_ENDS + _GQA).format(last=47, h=2048, q=4096, kv=512, v=151936)
    + """
model.layers.[0-47].self_attn.q_norm.weight  128
model.layers.[0-47].self_attn.k_norm.weight  128
model.layers.[0-47].mlp.gate.weight  128 2048
model.layers.[0-47].mlp.experts.[0-127].gate_proj.weight  768 2048
model.layers.[0-47].mlp.experts.[0-127].up_proj.weight  768 2048
model.layers.[0-47].mlp.experts.[0-127].down_proj.weight  2048 768
""",
    "Qwen3-Next-80B-A3B": _ENDS.format(last=47, h=2048, v=151936)
    + """
model.layers.[3-47/4].self_attn.q_proj.weight  8192 2048
model.layers.[3-47/4].self_attn.k_proj.weight  512 2048
model.layers.[3-47/4].self_attn.v_proj.weight  512 2048
model.layers.[3-47/4].self_attn.o_proj.weight  2048 4096
model.layers.[3-47/4].self_attn.q_norm.weight  256
model.layers.[3-47/4].self_attn.k_norm.weight  256
"""
    + """
model.layers.[0-44/4,1-45/4,2-46/4].linear_attn.in_proj_qkvz.weight  12288 2048
model.layers.[0-44/4,1-45/4,2-46/4].linear_attn.in_proj_ba.weight  64 2048
model.layers.[0-44/4,1-45/4,2-46/4].linear_attn.conv1d.weight  8192 1 4
model.layers.[0-44/4,1-45/4,2-46/4].linear_attn.A_log  32
model.layers.[0-44/4,1-45/4,2-46/4].linear_attn.dt_bias  32
model.layers.[0-44/4,1-45/4,2-46/4].linear_attn.norm.weight  128
model.layers.[0-44/4,1-45/4,2-46/4].linear_attn.out_proj.weight  2048 4096
"""
    + """
model.layers.[0-47].mlp.gate.weight  512 2048
model.layers.[0-47].mlp.experts.[0-511].gate_proj.weight  512 2048
model.layers.[0-47].mlp.experts.[0-511].up_proj.weight  512 2048
model.layers.[0-47].mlp.experts.[0-511].down_proj.weight  2048 512
model.layers.[0-47].mlp.shared_expert.gate_proj.weight  512 2048
model.layers.[0-47].mlp.shared_expert.up_proj.weight  512 2048
model.layers.[0-47].mlp.shared_expert.down_proj.weight  2048 512
model.layers.[0-47].mlp.shared_expert_gate.weight  1 2048
""",
    "gpt-oss-20b": _GPT_OSS.format(last=23, h=2880, q=4096, kv=512, v=201088, e=32),
    "gpt-oss-120b": _GPT_OSS.format(last=35, h=2880, q=4096, kv=512, v=201088, e=128),
    "Llama-4-Scout-17B-16E": (_ENDS + _GQA).format(last=47, h=5120, q=5120, kv=1024, v=202048)
    + """
model.layers.[0-47].feed_forward.router.weight  16 5120
model.layers.[0-47].feed_forward.experts.gate_up_proj  16 5120 16384
model.layers.[0-47].feed_forward.experts.down_proj  16 8192 5120
model.layers.[0-47].feed_forward.shared_expert.gate_proj.weight  8192 5120
model.layers.[0-47].feed_forward.shared_expert.up_proj.weight  8192 5120
model.layers.[0-47].feed_forward.shared_expert.down_proj.weight  5120 8192
""",
    "Llama-3_3-Nemotron-Super-49B": f"""
model.embed_tokens.weight  128256 8192
model.norm.weight  8192
lm_head.weight  128256 8192
model.layers.[0-79].post_attention_layernorm.weight  8192
model.layers.[{_SUPER_ATTENDS}].input_layernorm.weight  8192
model.layers.[{_SUPER_ATTENDS}].self_attn.q_proj.weight  8192 8192
model.layers.[{_SUPER_ATTENDS}].self_attn.k_proj.weight  1024 8192
model.layers.[{_SUPER_ATTENDS}].self_attn.v_proj.weight  1024 8192
model.layers.[{_SUPER_ATTENDS}].self_attn.o_proj.weight  8192 8192
"""
    + "".join(_MLP.format(layers=layers, inner=inner, h=8192) for inner, layers in _SUPER_INNER.items()),
    "Nemotron-H-8B": """
backbone.embeddings.weight  131072 4096
backbone.norm_f.weight  4096
lm_head.weight  131072 4096
backbone.layers.[0-51].norm.weight  4096
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.in_proj.weight  18560 4096
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.conv1d.weight  10240 1 4
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.conv1d.bias  10240
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.A_log  128
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.D  128
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.dt_bias  128
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.norm.weight  8192
backbone.layers.[0-6/2,9-17/2,20-28/2,31-39/2,42-50/2].mixer.out_proj.weight  4096 8192
backbone.layers.[7,18,29,40].mixer.q_proj.weight  4096 4096
backbone.layers.[7,18,29,40].mixer.k_proj.weight  1024 4096
backbone.layers.[7,18,29,40].mixer.v_proj.weight  1024 4096
backbone.layers.[7,18,29,40].mixer.o_proj.weight  4096 4096
backbone.layers.[1-5/2,8-16/2,19-27/2,30-38/2,41-51/2].mixer.up_proj.weight  21504 4096
backbone.layers.[1-5/2,8-16/2,19-27/2,30-38/2,41-51/2].mixer.down_proj.weight  4096 21504
""",
    "Nemotron-3-Nano-30B-A3B": f"""
backbone.embeddings.weight  131072 2688
backbone.norm_f.weight  2688
lm_head.weight  131072 2688
backbone.layers.[0-51].norm.weight  2688
backbone.layers.[{_NANO_MAMBA}].mixer.in_proj.weight  10304 2688
backbone.layers.[{_NANO_MAMBA}].mixer.conv1d.weight  6144 1 4
backbone.layers.[{_NANO_MAMBA}].mixer.conv1d.bias  6144
backbone.layers.[{_NANO_MAMBA}].mixer.A_log  64
backbone.layers.[{_NANO_MAMBA}].mixer.D  64
backbone.layers.[{_NANO_MAMBA}].mixer.dt_bias  64
backbone.layers.[{_NANO_MAMBA}].mixer.norm.weight  4096
backbone.layers.[{_NANO_MAMBA}].mixer.out_proj.weight  2688 4096
backbone.layers.[5,12,19,26,33,42].mixer.q_proj.weight  4096 2688
backbone.layers.[5,12,19,26,33,42].mixer.k_proj.weight  256 2688
backbone.layers.[5,12,19,26,33,42].mixer.v_proj.weight  256 2688
backbone.layers.[5,12,19,26,33,42].mixer.o_proj.weight  2688 4096
backbone.layers.[{_NANO_MIXED}].mixer.gate.weight  128 2688
backbone.layers.[{_NANO_MIXED}].mixer.gate.e_score_correction_bias  128
backbone.layers.[{_NANO_MIXED}].mixer.experts.[0-127].up_proj.weight  1856 2688
backbone.layers.[{_NANO_MIXED}].mixer.experts.[0-127].down_proj.weight  2688 1856
backbone.layers.[{_NANO_MIXED}].mixer.shared_experts.up_proj.weight  3712 2688
backbone.layers.[{_NANO_MIXED}].mixer.shared_experts.down_proj.weight  2688 3712
""",
    "DeepSeek-V3": _ENDS.format(last=60, h=7168, v=129280)
    + """
model.layers.[0-60].self_attn.q_a_proj.weight  1536 7168
model.layers.[0-60].self_attn.q_a_layernorm.weight  1536
model.layers.[0-60].self_attn.q_b_proj.weight  24576 1536
model.layers.[0-60].self_attn.kv_a_proj_with_mqa.weight  576 7168
model.layers.[0-60].self_attn.kv_a_layernorm.weight  512
model.layers.[0-60].self_attn.kv_b_proj.weight  32768 512
model.layers.[0-60].self_attn.o_proj.weight  7168 16384
model.layers.[0-2].mlp.gate_proj.weight  18432 7168
model.layers.[0-2].mlp.up_proj.weight  18432 7168
model.layers.[0-2].mlp.down_proj.weight  7168 18432
model.layers.[3-60].mlp.gate.weight  256 7168
model.layers.[3-60].mlp.gate.e_score_correction_bias  256
model.layers.[3-60].mlp.experts.[0-255].gate_proj.weight  2048 7168
model.layers.[3-60].mlp.experts.[0-255].up_proj.weight  2048 7168
model.layers.[3-60].mlp.experts.[0-255].down_proj.weight  7168 2048
model.layers.[3-60].mlp.shared_experts.gate_proj.weight  2048 7168
model.layers.[3-60].mlp.shared_experts.up_proj.weight  2048 7168
model.layers.[3-60].mlp.shared_experts.down_proj.weight  7168 2048
""",
}


def tensors(layout: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape. Raises ValueError for a name that is there twice."""
    found: dict[str, tuple[int, ...]] = {}
    for row in filter(None, layout.splitlines()):
        pattern, *shape = row.split()
        for name in _names(pattern):
            if name in found:
                raise ValueError(f"{name} is there twice")
            found[name] = tuple(map(int, shape))
    return found


def _names(pattern: str) -> Iterator[str]:
    literal = re.split(r"\[[^]]*\]", pattern)
    for chosen in product(*map(_numbers, re.findall(r"\[([^]]*)\]", pattern))):
        yield literal[0] + "".join(f"{number}{rest}" for number, rest in zip(chosen, literal[1:], strict=True))


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+))?(?:/(\d+))?", part).groups()
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers
