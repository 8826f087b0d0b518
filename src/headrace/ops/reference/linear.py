"""Products with a weight, and look-ups in one."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from headrace.ops.storage import PlainStorage


class ReferenceLinear(PlainStorage):
    """``LinearOps`` over plain tensors."""

    def apply(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        segments: int = 1,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        return F.linear(x, weight, bias).to(dtype or x.dtype)

    def embed(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, weight)


LINEAR = ReferenceLinear()
