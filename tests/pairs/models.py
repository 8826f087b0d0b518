"""The tiny models that features meet on, in folders with all that features need beside a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, GGMLQuantizationType

from draft_heads import write_head
from headrace.eval import tiny
from mtp_layers import write_mtp
from tiny_text import write_tokenizer
from weights.forms import FORMS, is_matrix, requantise, with_mxfp4_experts
from weights.gguf_convert import convert

from . import scenarios
from .cases import SEEING, STATEFUL, Numbers
from .scenarios import Scenario, Work, tiny_work, with_pictures

GGUF = "gguf-"
"""What the names of forms of GGUF files begin with; their type comes after it."""
_ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen3": MODEL_ARCH.QWEN3}
"""Variant -> what GGUF calls it."""
_LEFT_IN_FLOATS = ("eh_proj.weight",)
"""As publishers leave it: what a layer of multi-token prediction begins with."""


@torch.no_grad()
def write_model(folder: Path, variant: str, **changes: Any) -> Path:
    """A variant with a tokenizer, and what may draft for it."""
    model = tiny.make(variant, **changes)
    tiny.save(model, folder)
    write_mtp(folder, model, scenarios.MTP_LAYER)
    tiny.save(_draft_model(variant, model), folder / scenarios.DRAFT_MODEL)
    write_head(folder / scenarios.DRAFT_HEAD, folder)
    write_tokenizer(folder, model.config.vocab_size)
    return folder


def _draft_model(variant: str, model: Any) -> Any:
    """A model that often, but not always, draws what this one draws; where its kind cannot draft, some other one."""
    if variant in (*STATEFUL, *SEEING):
        return tiny.make("llama")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.mul_(1 + 0.04 * torch.randn_like(parameter))
    return model


def write_form(plain: Path, folder: Path, form: str, variant: str, changes: Mapping[str, Any]) -> Path:
    """The model that ``write_model`` has written to ``plain`` in a form of few bits, with the same things beside it."""
    if form.startswith(GGUF):
        _write_gguf(folder, GGMLQuantizationType[form.removeprefix(GGUF)], variant, changes)
    elif form in FORMS:
        requantise(plain, folder, form, _is_chosen)
    else:
        with_mxfp4_experts(plain, folder)
    beside = (scenarios.DRAFT_MODEL, scenarios.DRAFT_HEAD, scenarios.MTP_LAYER)
    for name in (*beside, "tokenizer.json", "tokenizer_config.json"):
        if (plain / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to(plain / name)
    return folder


def _write_gguf(folder: Path, kind: GGMLQuantizationType, variant: str, changes: Mapping[str, Any]) -> None:
    """A file, and another one that drafts for it."""
    with torch.no_grad():
        model = tiny.make(variant, **changes)
        for place in (folder, folder / scenarios.DRAFT_MODEL):
            place.mkdir()
            convert(model, _ARCHITECTURES[variant], place / "model.gguf", matrices=kind)
            model = _draft_model(variant, model)


def _is_chosen(name: str, weight: torch.Tensor) -> bool:
    return is_matrix(name, weight) and not name.endswith(_LEFT_IN_FLOATS)


def work_for(variant: str, drawn: Any = "half") -> Work:
    """What requests of that model are."""
    work = dataclasses.replace(tiny_work(), drawn=drawn)
    return with_pictures(work, tiny.BASE["vocab_size"]) if variant in SEEING else work


def built(scenario: Scenario, numbers: Numbers) -> Scenario:
    """The scenario over weights, activations, keys and values in those numbers."""
    if numbers.quant_algo is not None:
        scenario.args["quant_config"] = {"quant_algo": numbers.quant_algo}
    scenario.args["dtype"] = numbers.dtype
    scenario.cache["dtype"] = numbers.kv
    return scenario
