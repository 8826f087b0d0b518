"""Features on every form of quantised files and of rounding at load, over every cache, at both dtypes and every level.

All features at once meet each form in every way of keeping the other numbers, half of them at one level, half at the
other. Each alone meets it in one of these, the next one at the next forms, so that every feature meets all of them, and
both levels.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from headrace.ops.native import core

from .cases import TURN, Case, Numbers, everything, names_on
from .models import GGUF

LEVELS = ("avx2", "avx512")
"""Those whose cases are in the record. A process has the cases of its own level: HEADRACE_ISA says which."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A tiny model in a form."""

    variant: str
    changes: dict[str, Any] = field(default_factory=dict)
    quant_algo: str | None = None


# Widths that groups of 32, or blocks of 256, go into.
_EXPERTS = {"moe_intermediate_size": 64}
_LATENT = {"q_lora_rank": 32, "v_head_dim": 16}
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}

FORMS = {
    "gptq-4": Kept("qwen2"),
    "gptq-4-row": Kept("phi3"),
    "gptq-4-zeros": Kept("mixtral"),
    "gptq-4-v2": Kept("qwen3"),
    "gptq-4-desc-act": Kept("llama"),
    "gptq-8": Kept("gemma3-untied-window-40"),
    "gptq-8-zeros-16": Kept("llama"),
    "awq": Kept("qwen3-moe", _EXPERTS),
    "awq-16": Kept("exaone4", {"sliding_window": 40}),
    "ct-int4": Kept("gemma3-untied-window-40"),
    "ct-int4-zeros": Kept("mistral", {"sliding_window": 40}),
    "ct-int4-row": Kept("llama"),
    "ct-int8-packed": Kept("qwen2"),
    "ct-int8": Kept("qwen3-next", {**_EXPERTS, "shared_expert_intermediate_size": 64}),
    "ct-int8-tensor-zero": Kept("nemotron"),
    "ct-fp8": Kept("nemotron"),
    "ct-fp8-row": Kept("llama4", {"attention_chunk_size": 40}),
    "ct-fp8-blocks": Kept("qwen3"),
    "ct-nvfp4": Kept("llama"),
    "ct-mxfp4": Kept("mistral"),
    "fp8-blocks": Kept("deepseek-v3", _LATENT),
    "modelopt-fp8": Kept("decilm"),
    "modelopt-nvfp4": Kept("nemotron-h-experts", {**_EXPERTS, "moe_shared_expert_intermediate_size": 64}),
    "mxfp4-experts": Kept("gpt-oss", {"sliding_window": 40}),
    "int8": Kept("llama4-chunk-40-odd", quant_algo="int8"),
    "int4": Kept("deepseek-v3", quant_algo="int4"),
    **{f"{GGUF}{kind}": Kept("llama", quant_algo="gguf") for kind in ("Q4_0", "Q5_0", "Q8_0", "MXFP4")},
    **{f"{GGUF}{kind}": Kept("qwen3", quant_algo="gguf") for kind in ("Q4_1", "Q5_1", "IQ4_NL")},
    **{f"{GGUF}{kind}": Kept("llama", _WIDE, quant_algo="gguf") for kind in ("Q2_K", "Q4_K", "Q6_K")},
    **{f"{GGUF}{kind}": Kept("qwen3", _WIDE, quant_algo="gguf") for kind in ("Q3_K", "Q5_K", "IQ4_XS")},
}
"""Form -> the model that is in it: every form that is read, over kinds of layers that publishers have in it."""
WAYS = tuple(itertools.product(("float32", "bfloat16"), ("auto", "int8", "fp8")))
"""Dtype of activations, and how keys and values are kept."""


def family(form: str, way: tuple[str, str], level: str) -> str:
    """What cases call a model in a form whose other numbers are kept that way."""
    return f"{form}-{way[0]}-kv-{way[1]}-{level}"


@cache
def families() -> dict[str, tuple[str, Numbers]]:
    """Family -> form and numbers, at all levels."""
    return {
        family(form, way, level): (form, Numbers(kept.quant_algo, way[1], way[0]))
        for level in LEVELS
        for form, kept in FORMS.items()
        for way in WAYS
    }


def level() -> str:
    """Of this process; empty without a native core."""
    return core.native().level() if core.is_available() else ""


def _ways(place: int, at: str) -> tuple[tuple[str, str], ...]:
    """Of the form in that place: three at each level, which are all together."""
    return WAYS[(place // 2 + LEVELS.index(at)) % 2 :: 2]


@cache
def _all(at: str) -> tuple[tuple[tuple[str, ...], str], ...]:
    found: list[tuple[tuple[str, ...], str]] = []
    for place, (form, kept) in enumerate(FORMS.items()):
        ways, at_once = _ways(place, at), everything(kept.variant, place)
        found += [(at_once, family(form, way, at)) for way in ways]
        for name in names_on(kept.variant):
            # By the name: a new feature does not move the others.
            turn = zlib.crc32(name.encode())
            if (turn + place + LEVELS.index(at)) % 2 == 0:
                found.append(((name,), family(form, ways[(turn // 2 + place // 4) % len(ways)], at)))
    return tuple(found)


def cases(at: str, turn: int = TURN) -> list[Case]:
    """Those of a level. A sample that turns is slow, the rest full. Those that share plain runs stand together."""
    found = [
        Case(names, model, "slow" if (place - turn) % TURNS == 0 else "full")
        for place, (names, model) in enumerate(_all(at))
    ]
    return sorted(found, key=lambda case: (case.tier, case.family))


TURNS = 100
"""So many samples of the slow tier have all of it."""
