"""Gated delta nets (arXiv 2412.06464) as Qwen3-Next has them."""

from __future__ import annotations

from headrace.ops.recurrent import RecurrentShape, RecurrentWeights

from .base import BuildContext, Parameter, stacked
from .recurrent import RecurrentMixer


class GatedDeltaNet(RecurrentMixer):
    """Names are those of the checkpoint's module: ``in_proj_qkvz``, ``in_proj_ba``, ``conv1d``, ``A_log``, ``dt_bias``,
    ``norm``, ``out_proj``. The projections' outputs are grouped by key head, as the operator takes them.

    Args:
        shape: units are the key heads, with the value heads that share each; rows are as wide as a key.
    """

    def __init__(self, ctx: BuildContext, name: str, shape: RecurrentShape, hidden_size: int, eps: float) -> None:
        keys = 2 * shape.n_units * shape.rows
        inputs = {"in_proj_qkvz": keys + 2 * shape.n_out, "in_proj_ba": 2 * shape.n_heads}
        super().__init__(ctx, name, "gated_delta", shape, hidden_size, inputs)
        sources = stacked((f"{name}.norm.weight",), (shape.cols,))
        self.norm = Parameter(self.small(ctx), (shape.cols,), sources)
        self._eps = eps

    def _read_weights(self) -> RecurrentWeights:
        width = self._shape.n_units * self._shape.rows
        conv = self.by_unit(self.conv.data.squeeze(1), (width, width, self._shape.n_out))
        return RecurrentWeights(
            conv=conv.transpose(1, 2).contiguous(),
            conv_bias=None,
            decay=-self.a_log.data.exp(),
            dt_bias=self.dt_bias.data,
            norm=self.norm.data,
            eps=self._eps,
        )
