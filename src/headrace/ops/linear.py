"""The contract of linear operators: a weight's memory, products with it, and look-ups in it."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .storage import Storage


class LinearOps(Storage, Protocol):
    """One implementation makes a weight [n_out, n_in], fills and reads it. A tied table is one weight of two uses."""

    def apply(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: torch.Tensor | None,
        *,
        segments: int = 1,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """x [T, n_in] times weight transposed, plus bias [n_out].

        Args:
            x: in the dtype of the weight; rows may be any distance apart.
            segments: 1, or 4: n_in is cut into quarters that are summed apart and added as (s0 + s1) + (s2 + s3), so
                that ranks that own quarters get the same sums. Exact implementations promise this; the reference leaves
                the order of additions to torch.
            dtype: of the result, that of x or float32; None: that of x.

        Returns:
            [T, n_out].
        """
        ...

    def embed(self, ids: torch.Tensor, weight: Any) -> torch.Tensor:
        """Rows ``ids`` [T] int64 of the weight -> [T, n_in]. Raises IndexError for an id outside [0, n_out)."""
        ...
