"""LoRA adapters: their settings, and how a request names one. Names follow TensorRT-LLM's LLM API."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from .config_base import Config, Positive
from .errors import RequestError

MODULE_NAMES = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_qkv": "qkv_proj",
    "attn_dense": "o_proj",
    "mlp_h_to_4h": "gate_proj",
    "mlp_gate": "up_proj",
    "mlp_gate_up": "gate_up_proj",
    "mlp_4h_to_h": "down_proj",
}
"""TensorRT-LLM's names of modules -> the last part of their names in checkpoints."""

USUAL_ADAPTERS = 8
"""``max_loras`` where nobody says."""


class LoraConfig(Config):
    """Adapters that requests may name. They lie in main memory, where the model computes."""

    lora_dir: tuple[str, ...] = ()
    """Folders of adapters that are loaded at the start and stay; the name of each is that of its folder."""
    lora_modules: dict[str, str] = Field(default_factory=dict)
    """Likewise, with names of one's own: name to folder."""
    lora_ckpt_source: Literal["hf"] = "hf"
    """The layout of peft: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    max_lora_rank: Positive = 64
    """Largest rank of an adapter. Smaller ones take less memory and time."""
    lora_target_modules: tuple[str, ...] = ()
    """Modules that an adapter may change, by the last part of their names ("q_proj") or by TensorRT-LLM's ("attn_q");
    empty: all that can be."""
    max_loras: Positive | None = None
    """Adapters that are loaded at once; None: 8. A request whose adapter finds no place waits until one is idle."""

    @field_validator("lora_target_modules")
    @classmethod
    def _by_checkpoint_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(MODULE_NAMES.get(name, name) for name in names)

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        names = [Path(folder).name for folder in self.lora_dir] + list(self.lora_modules)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two adapters are called {twice!r}; give one of them another name in lora_modules")
        if "" in names:
            raise ValueError("an adapter has no name; write lora_modules as {name: folder}")
        return self

    @property
    def at_start(self) -> dict[str, str]:
        """Those that are loaded at the start: name to folder."""
        return {Path(folder).name: folder for folder in self.lora_dir} | self.lora_modules

    @property
    def n_adapters(self) -> int:
        return self.max_loras or max(USUAL_ADAPTERS, len(self.at_start))


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """The adapter that a request is computed with. It is loaded by the first request that names it.

    Raises ``RequestError`` for an empty name or an id below 0.
    """

    lora_name: str
    lora_int_id: int
    """Tells adapters apart: one id is one folder, until it is unloaded."""
    lora_path: str = ""
    """Folder in the layout of peft. Empty: an adapter of that name is loaded, whatever its id."""

    def __post_init__(self) -> None:
        if not isinstance(self.lora_name, str) or not self.lora_name:
            raise RequestError("LoRARequest.lora_name is empty; give the adapter a name", param="lora_request")
        if not isinstance(self.lora_int_id, int) or isinstance(self.lora_int_id, bool) or self.lora_int_id < 0:
            raise RequestError(
                f"LoRARequest.lora_int_id={self.lora_int_id!r}: give a whole number from 0 on", param="lora_request"
            )
        if not isinstance(self.lora_path, str):
            raise RequestError("LoRARequest.lora_path is the path of a folder, as a text", param="lora_request")


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """A loaded adapter as the scheduler and the worker know it."""

    number: int
    """Its place among those that are loaded."""
    content: str
    """A hash of its files: what was computed with it is found again under this, whatever it is called."""
