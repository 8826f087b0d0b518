"""Norms. Statistics in fp32; where the weight is multiplied is what tells the kinds apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps), cast to the dtype of x, then times weight (arXiv 1910.07467; the order is Llama's).

    Args:
        x: [..., n].
        weight: [n], or any shape that broadcasts against x (one weight per head).

    Returns:
        Shape and dtype of x.
    """
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], None, eps) * weight
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype) * weight


def rms_norm_plus_one(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As ``rms_norm`` but times (1 + weight) in fp32, before the cast: Gemma's kind."""
    return (F.rms_norm(x.float(), x.shape[-1:], None, eps) * (1.0 + weight.float())).to(x.dtype)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, all in fp32 (arXiv 1607.06450).

    Args:
        x: [..., n].
        weight, bias: [n].

    Returns:
        Shape and dtype of x.
    """
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def layer_norm_plus_one(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """As ``layer_norm`` but times (1 + weight): stored as Nemotron does."""
    return F.layer_norm(x.float(), x.shape[-1:], 1.0 + weight.float(), bias.float(), eps).to(x.dtype)
