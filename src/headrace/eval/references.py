"""What a model is compared with: transformers' class of its architecture, or plain torch where there is none.

A reference's call takes [1, T] ids; ``logits`` of what it gives are [1, T, width], or [1, width] where it pools.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch

from headrace.core.errors import CheckpointError, ConfigError, ModelError
from headrace.models.registry import architecture_of
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from headrace.weights.dummy import write_safetensors
from headrace.weights.safetensors import SafetensorsCheckpoint

from .decilm_reference import DeciLM

__all__ = ["DeciLM", "RewardModel", "open_reference", "rows", "transformers", "vocab_size"]

_SHARD = 1 << 30


def transformers() -> ModuleType:
    """Raises ConfigError where it is not installed."""
    try:
        import transformers as package
    except ImportError as error:
        raise ConfigError(
            f"parity is a comparison with transformers, which cannot be imported ({error}):"
            " pip install 'headrace[parity]'"
        ) from None
    package.utils.logging.disable_progress_bar()
    return package


def rows(reference: Any, token_ids: list[int]) -> torch.Tensor:
    """[T, width], or [1, width] of a reference that pools."""
    with torch.no_grad():
        logits = reference(torch.tensor([token_ids])).logits
    return logits.reshape(-1, logits.shape[-1]).float()


def vocab_size(reference: Any) -> int:
    """Of its text model, where it has parts."""
    config = reference.config
    found: int = (config.get_text_config() if hasattr(config, "get_text_config") else config).vocab_size
    return found


def open_reference(path: Path) -> tuple[Any, str]:
    """The fp32 reference of a checkpoint, and a remark on where its weights come from, if there is one to make.

    Weights in blocks are given to it as the values that headrace reads: then parity says nothing of the reading.

    Raises:
        ConfigError: transformers is not there.
        ModelError: it does not have the architecture.
        CheckpointError: it does not find all its weights.
    """
    checkpoint = open_checkpoint(path)
    try:
        name = architecture_of(checkpoint.config())
        if name == "DeciLMForCausalLM":
            return DeciLM.read(checkpoint), "the reference is this package's own, in plain torch"
        if isinstance(checkpoint, SafetensorsCheckpoint) and not checkpoint.config().get("quantization_config"):
            return _read(name, path), ""
        with tempfile.TemporaryDirectory() as folder:
            values = _write_values(checkpoint, Path(folder))
            return _read(name, values), "the reference has the values that headrace reads out of the file's blocks"
    finally:
        checkpoint.close()


def _write_values(checkpoint: Checkpoint, folder: Path) -> Path:
    config = {k: v for k, v in checkpoint.config().items() if k != "quantization_config"}
    return write_safetensors(folder, config, {n: checkpoint.tensor(n) for n in checkpoint.names()}, _SHARD)


def _read(name: str, folder: Path) -> Any:
    if name in RewardModel.N_OUT:
        return RewardModel.read(name, folder)
    kind = getattr(transformers(), _named(folder), None) or getattr(transformers(), name, None)
    if kind is None:
        raise ModelError(f"transformers {transformers().__version__} has no {name}: there is nothing to compare with")
    return _from_pretrained(kind, folder)


def _named(folder: Path) -> str:
    return SafetensorsCheckpoint(folder).config()["architectures"][0]


def _from_pretrained(kind: Any, folder: Path) -> Any:
    settings = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
    model, info = kind.from_pretrained(folder, **settings, output_loading_info=True)
    wrong = sorted(info["missing_keys"]) or sorted(map(str, info["mismatched_keys"]))
    if wrong:
        raise CheckpointError(
            f"{folder}: transformers does not find {', '.join(wrong[:5])} in it, or not of that shape"
        )
    return model.eval().requires_grad_(False)


class RewardModel:
    """Qwen2 and two linear maps with a ReLU between them. No library has the class."""

    N_OUT: ClassVar = {"Qwen2ForRewardModel": 1, "Qwen2ForProcessRewardModel": 2}

    def __init__(self, name: str, decoder: Any) -> None:
        """``decoder``: transformers' Qwen2ForCausalLM."""
        size = decoder.config.hidden_size
        self.config = decoder.config
        self.name = name
        self._decoder = decoder
        self.score = torch.nn.Sequential(
            torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, self.N_OUT[name])
        ).requires_grad_(False)

    @classmethod
    def read(cls, name: str, folder: Path) -> RewardModel:
        model = cls(name, _from_pretrained(transformers().Qwen2ForCausalLM, folder))
        checkpoint = open_checkpoint(folder)
        for key, parameter in model.score.state_dict().items():
            parameter.copy_(checkpoint.tensor(f"score.{key}"))
        checkpoint.close()
        return model

    def __call__(self, token_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.score(self._decoder.model(token_ids).last_hidden_state))

    def save_pretrained(self, folder: Path) -> None:
        """The file still holds an lm_head, as the published ones do: nobody asks for it."""
        tensors = {**self._decoder.state_dict(), **{f"score.{k}": v for k, v in self.score.state_dict().items()}}
        config = {**self.config.to_dict(), "architectures": [self.name]}
        write_safetensors(folder, {k: v for k, v in config.items() if v is not None}, tensors)
