"""transformers' own model on the weights of a GGUF file."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from headrace.weights.checkpoint import open_checkpoint


def reference(path: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """transformers' model on the same, dequantised, weights."""
    checkpoint = open_checkpoint(path)
    fields = checkpoint.config()
    family = getattr(transformers, fields.pop("architectures")[0])
    config = family.config_class(**fields)
    config._attn_implementation = "eager"
    model = family(config).eval().requires_grad_(False)
    tensors = {name: checkpoint.tensor(name).float() for name in checkpoint.names()}
    checkpoint.close()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    model.to(dtype)
    # A model loaded in bf16 keeps its rope frequencies in fp32; the cast above has rounded them.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model
