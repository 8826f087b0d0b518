"""Linear maps of two inputs that a checkpoint holds side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import BuildContext, Layer, Source, Weight


class TwoInputs(Layer):
    """W [e | x]ᵀ, where e and x come apart: the two halves of the checkpoint's columns are a weight each."""

    def __init__(self, ctx: BuildContext, names: Sequence[str], n_in: int, n_outs: Sequence[int]) -> None:
        def half(first: int) -> Weight:
            sources, row = [], 0
            for name, n_out in zip(names, n_outs, strict=True):
                columns = slice(first, first + n_in)
                sources.append(
                    Source(
                        f"{name}.weight", (n_out, 2 * n_in), row, row + n_out,
                        turn=lambda rows, columns=columns: rows[:, columns],
                    )
                )  # fmt: skip
                row += n_out
            return Weight(ctx, (row, n_in), tuple(sources))

        self.of_embedding, self.of_state = half(0), half(n_in)
        self._add = ctx.ops.add

    def __call__(self, both: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[T, n_in] twice -> [T, sum of n_outs]."""
        e, x = both
        mine = self.of_embedding.ops.apply(e, self.of_embedding.data, None)
        return self._add(mine, self.of_state.ops.apply(x, self.of_state.data, None))
