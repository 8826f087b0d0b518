"""Cross-attention: rows of text look at what an encoder made of media."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from headrace.cache.specs import CrossKV
from headrace.core.errors import EngineError
from headrace.ops.batch import Batch

from .adapters import NO_ADAPTERS
from .attention import AttentionShape
from .base import BuildContext, CachedLayer, Layer
from .gate import TanhGate
from .linear import Linear
from .norm import RMSNorm


class CrossBlock(CachedLayer):
    """x + tanh(g) attention(norm x), then x + tanh(h) mlp(norm x); a row that sees no media stays as it is.

    Keys and values are written by ``write``, once for all rows that will see them. Query and key heads are normed, and
    nothing is rotated (Llama 3.2 Vision).

    Args:
        name: path of the checkpoint's layer (``model.layers.3``).
    """

    def __init__(self, ctx: BuildContext, name: str, shape: AttentionShape, eps: float, mlp: Layer) -> None:
        size, n_heads, n_kv_heads, head_dim = shape.hidden_size, shape.n_heads, shape.n_kv_heads, shape.head_dim
        attention = f"{name}.cross_attn"
        self._n_heads, self._n_kv_heads, self._head_dim = n_heads, n_kv_heads, head_dim
        self._backend, self._dtype = ctx.ops.attention, ctx.cache_dtype
        self.cache_spec = CrossKV(n_kv_heads, head_dim, ctx.cache_dtype.itemsize)
        self.attention_norm = RMSNorm(ctx, f"{name}.input_layernorm", size, eps)
        self.q = Linear(ctx, (f"{attention}.q_proj",), size, (n_heads * head_dim,))
        # Its rows are the media's, not the step's: they go with no adapter.
        alone = replace(ctx, adapters=NO_ADAPTERS)
        self.kv = Linear(alone, (f"{attention}.k_proj", f"{attention}.v_proj"), size, (n_kv_heads * head_dim,) * 2)
        self.q_norm = RMSNorm(ctx, f"{attention}.q_norm", head_dim, eps)
        self.k_norm = RMSNorm(ctx, f"{attention}.k_norm", head_dim, eps)
        self.out = Linear(ctx, (f"{attention}.o_proj",), n_heads * head_dim, (size,), parts=n_heads)
        self.attention_gate = TanhGate(ctx, f"{name}.cross_attn_attn_gate")
        self.mlp_norm = RMSNorm(ctx, f"{name}.post_attention_layernorm", size, eps)
        self.mlp = mlp
        self.mlp_gate = TanhGate(ctx, f"{name}.cross_attn_mlp_gate")
        self._group = -1
        self._cache: Any = None
        self._factors = (0.0, 0.0)

    def bind_cache(self, group: int, cache: torch.Tensor) -> None:
        if cache.dtype != self._dtype:
            raise EngineError(f"a cache in {cache.dtype} does not fit {self.cache_spec} in {self._dtype}")
        self._group, self._cache = group, self._backend.bind(cache, self.cache_spec)
        self._factors = self.attention_gate.factor, self.mlp_gate.factor

    def write(self, states: torch.Tensor, plans: dict[int, Any]) -> None:
        """Keys and values of ``states`` [n, hidden] into the places of the plan of its group."""
        kv = self.kv(states).unflatten(1, (2 * self._n_kv_heads, self._head_dim))
        k, v = self.k_norm(kv[:, : self._n_kv_heads]), kv[:, self._n_kv_heads :]
        self._backend.write(k, v, self._cache, plans[self._group])

    def __call__(self, x: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; ``angles`` are of no use here."""
        if not batch.sees_media:
            return x
        plan, add = batch.groups[self._group].metadata, self._backend.add_where_seen
        q = self.q_norm(self.q(self.attention_norm(x)).unflatten(1, (self._n_heads, self._head_dim)))
        seen = self._backend.attend(q, self._cache, plan, scale=self._head_dim**-0.5)
        x = add(x, self.out(seen.flatten(1)), self._factors[0], plan)
        return add(x, self.mlp(self.mlp_norm(x)), self._factors[1], plan)
