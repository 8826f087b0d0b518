"""Mamba2 mixers (arXiv 2405.21060), with one gated norm for each group."""

from __future__ import annotations

from headrace.ops.recurrent import RecurrentShape, RecurrentWeights

from .base import BuildContext, Parameter, stacked
from .recurrent import RecurrentMixer


class Mamba2(RecurrentMixer):
    """Names are those of the checkpoint's module: ``in_proj``, ``conv1d``, ``A_log``, ``D``, ``dt_bias``, ``norm``,
    ``out_proj``.

    Args:
        shape: units are the groups; rows are ``ssm_state_size`` wide, cols ``mamba_head_dim``.
        dt_limit: bounds of the time step.
        bias, conv_bias: of the projections, and of the convolution.
    """

    def __init__(
        self,
        ctx: BuildContext,
        name: str,
        shape: RecurrentShape,
        hidden_size: int,
        eps: float,
        *,
        dt_limit: tuple[float, float],
        bias: bool = False,
        conv_bias: bool = True,
    ) -> None:
        width = 2 * shape.n_out + 2 * shape.n_units * shape.rows + shape.n_heads
        super().__init__(ctx, name, "mamba2", shape, hidden_size, {"in_proj": width}, bias=bias)
        small, channels, heads = self.small(ctx), (shape.n_units * shape.channels,), (shape.n_heads,)
        sources = stacked((f"{name}.conv1d.bias",), channels)
        self.conv_bias = Parameter(small, channels, sources) if conv_bias else None
        self.skip = Parameter(small, heads, stacked((f"{name}.D",), heads))
        self.norm = Parameter(small, (shape.n_out,), stacked((f"{name}.norm.weight",), (shape.n_out,)))
        self._eps, self._dt_limit = eps, dt_limit

    def _read_weights(self) -> RecurrentWeights:
        width = self._shape.n_units * self._shape.rows
        kinds = (self._shape.n_out, width, width)
        return RecurrentWeights(
            conv=self.by_unit(self.conv.data.squeeze(1), kinds).transpose(1, 2).contiguous(),
            conv_bias=None if self.conv_bias is None else self.by_unit(self.conv_bias.data, kinds).contiguous(),
            decay=-self.a_log.data.exp(),
            dt_bias=self.dt_bias.data,
            norm=self.norm.data,
            eps=self._eps,
            skip=self.skip.data,
            dt_limit=self._dt_limit,
        )
