"""LoRA adapters in the layout of peft: ``adapter_config.json`` and ``adapter_model.safetensors``.

An adapter changes the product with a weight W into W x + scale * B A x (arXiv 2106.09685), scale = alpha / r, or
alpha / sqrt(r) with ``use_rslora`` (arXiv 2312.03732). What an adapter asks for beyond that is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from headrace.core.errors import CheckpointError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_SAYS_NOTHING = frozenset(
    (
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "eva_config"),
        *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "loftq_config"),
    )
)
"""Fields of training, or that the tensors say as well."""

_READ = frozenset(
    ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias")
)

_MERGE = "merge the adapter into the model and serve that"
_REFUSED = {
    "use_dora": f"DoRA scales the rows of the merged weight; {_MERGE}",
    "modules_to_save": f"the adapter replaces whole modules; {_MERGE}",
    "fan_in_fan_out": "weights are stored the other way round, as no model here has them",
    "lora_bias": f"B has a bias; {_MERGE}",
    "layer_replication": "the adapter repeats layers; make a model of them",
    "target_parameters": f"parameters of experts are changed; {_MERGE}",
    "trainable_token_indices": f"rows of the embedding are changed; {_MERGE}",
    "alora_invocation_tokens": "the adapter acts from certain tokens on (aLoRA), which is not supported",
}
_USUAL_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """What an adapter adds to the outputs of one module: scale * B A x."""

    a: torch.Tensor
    """[rank, n_in]."""
    b: torch.Tensor
    """[n_out, rank]."""
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """An adapter as it is in its files."""

    path: Path
    modules: Mapping[str, ModuleDelta]
    """By the path of the module in the model."""
    content: str
    """A hash of both files."""


def read_adapter(path: Path) -> PeftAdapter:
    """Raises ``CheckpointError`` for files that are missing, damaged or contradict each other, and for what cannot be
    computed here."""
    config_file, tensor_file = path / CONFIG, path / TENSORS
    if not config_file.is_file():
        raise CheckpointError(f"{str(path)!r} has no {CONFIG}: give the folder of an adapter in the layout of peft")
    if not tensor_file.is_file():
        raise CheckpointError(
            f"{path} has no {TENSORS}; an adapter stored otherwise (adapter_model.bin runs code when it is read) is"
            " converted by loading and saving it with peft"
        )
    content = config_file.read_bytes()
    try:
        config = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{config_file}: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file} is no JSON object")
    _check(config, config_file)
    pairs = _pairs(tensor_file)
    modules = {name: _delta(name, pair, config, tensor_file) for name, pair in pairs.items()}
    if not modules:
        raise CheckpointError(f"{tensor_file} has no tensors")
    digest = xxhash.xxh3_128(content)
    with tensor_file.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return PeftAdapter(path, modules, digest.hexdigest())


def _check(config: dict[str, Any], file: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{file}: peft_type is {kind!r}; LORA is what is supported")
    for name, value in config.items():
        if name in _READ or name in _SAYS_NOTHING or value in (None, False, [], {}):
            continue
        reason = _REFUSED.get(name, f"this is not known here; {_MERGE}")
        raise CheckpointError(f"{file}: {name}={value!r}: {reason}")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{file}: bias={config['bias']!r}: the adapter changes biases; {_MERGE}")
    start = config.get("init_lora_weights", True)
    if start not in _USUAL_STARTS:
        raise CheckpointError(
            f"{file}: init_lora_weights={start!r} changes the weights of the model itself; convert the adapter with"
            " peft (save_pretrained(path_initial_model_for_weight_conversion=...)), or merge it into the model"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise CheckpointError(f"{file}: {name} is no object")


def _pairs(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Module -> its "A" and "B"."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  not a dict
                found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight", key)
                if found is None:
                    raise CheckpointError(f"{file}: tensor {key!r} is no lora_A or lora_B of a linear map; {_MERGE}")
                pairs.setdefault(found[1], {})[found[2]] = tensors.get_tensor(key)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return pairs


def _delta(name: str, pair: dict[str, torch.Tensor], config: dict[str, Any], file: Path) -> ModuleDelta:
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None:
        raise CheckpointError(f"{file}: {name} has lora_{'B' if a is None else 'A'} alone")
    rank = _of_pattern(config, "rank_pattern", "r", 8, name, file)
    alpha = _of_pattern(config, "alpha_pattern", "lora_alpha", 8, name, file)
    if a.dim() != 2 or b.dim() != 2 or not a.is_floating_point() or not b.is_floating_point():
        raise CheckpointError(
            f"{file}: {name} has {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}, no matrices"
        )
    if rank < 1 or rank != int(rank) or a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(
            f"{file}: {name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, and {CONFIG} says rank {rank:g}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise CheckpointError(f"{file}: {name} has values that are not finite")
    return ModuleDelta(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_pattern(config: dict[str, Any], pattern: str, plain: str, default: int, name: str, file: Path) -> float:
    """The value of the first pattern that matches an end of the name, as peft looks it up."""
    value = config.get(plain, default)
    for key, special in (config.get(pattern) or {}).items():
        try:
            found = re.match(rf"(.*\.)?({key})$", name)
        except re.error as error:
            raise CheckpointError(f"{file}: {pattern} has {key!r}, which is no expression: {error}") from None
        if found:
            value = special
            break
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{file}: {name} has {plain} {value!r}, which is no number")
    return float(value)
