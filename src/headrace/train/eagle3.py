"""An EAGLE-3 head that can be trained (arXiv 2503.01840): one layer that guesses what comes after the next token.

In training every position starts a chain of its own, as it would when drafting: at step 0 it reads the states of the
model, at step k what it made itself at step k - 1, beside the token that is known by then. Its keys of earlier steps
are seen by its own chain only.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from headrace.core.errors import ModelError


class HeadShape:
    """Sizes of a head, as they stand in its ``config.json``."""

    def __init__(self, config: dict[str, object]) -> None:
        def size(name: str) -> int:
            value = config[name]
            if not isinstance(value, int):
                raise ModelError(f"{name} of a draft head must be an integer, got {value!r}")
            return value

        self.hidden, self.inner = size("hidden_size"), size("intermediate_size")
        self.n_heads, self.n_kv_heads, self.head_dim = (
            size("num_attention_heads"),
            size("num_key_value_heads"),
            size("head_dim"),
        )
        self.draft_vocab = size("draft_vocab_size")
        self.eps, self.theta = float(config["rms_norm_eps"]), float(config["rope_theta"])  # type: ignore[arg-type]


class _Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps) * self.weight).to(x.dtype)


class _Attention(nn.Module):
    """Of [embedding | state] rows; a cache is the keys and values of all steps so far, [B, heads, S, head_dim] each."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(2 * shape.hidden, shape.n_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * shape.hidden, shape.n_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * shape.hidden, shape.n_kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, cache: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        shape, (batch, length, _) = self.shape, x.shape
        step = len(cache)
        angles = _angles(length, step, shape.head_dim, shape.theta)
        q = _turn(self.q_proj(x).view(batch, length, shape.n_heads, shape.head_dim).transpose(1, 2), angles)
        k = _turn(self.k_proj(x).view(batch, length, shape.n_kv_heads, shape.head_dim).transpose(1, 2), angles)
        v = self.v_proj(x).view(batch, length, shape.n_kv_heads, shape.head_dim).transpose(1, 2)
        each = shape.n_heads // shape.n_kv_heads
        cache.append((k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)))
        q = q * shape.head_dim**-0.5
        first_keys, first_values = cache[0]
        past = torch.ones(length, length, dtype=torch.bool).tril()
        scores = (q @ first_keys.transpose(2, 3)).float().masked_fill(~past, float("-inf"))
        own = [(q * keys).float().sum(3, keepdim=True) for keys, _ in cache[1:]]
        weights = torch.cat([scores, *own], 3).softmax(3).to(q.dtype)
        mixed = weights[..., :length] @ first_values
        for place, (_, values) in enumerate(cache[1:]):
            mixed = mixed + weights[..., length + place, None] * values
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class _MLP(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _MidLayer(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.input_layernorm = _Norm(shape.hidden, shape.eps)
        self.hidden_norm = _Norm(shape.hidden, shape.eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Norm(shape.hidden, shape.eps)
        self.mlp = _MLP(shape)

    def forward(self, x: torch.Tensor, e: torch.Tensor, cache: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        both = torch.cat([self.input_layernorm(e), self.hidden_norm(x)], 2)
        x = x + self.self_attn(both, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class TrainableHead(nn.Module):
    """Parameters go by their names in the public checkpoint layout."""

    def __init__(self, shape: HeadShape, n_states: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n_states, shape.hidden, bias=False)
        self.midlayer = _MidLayer(shape)
        self.norm = _Norm(shape.hidden, shape.eps)
        self.lm_head = nn.Linear(shape.hidden, shape.draft_vocab, bias=False)

    def forward(self, states: torch.Tensor, embedded: torch.Tensor, n_steps: int) -> list[torch.Tensor]:
        """What ``lm_head`` takes, for each step of the chains.

        Args:
            states: [B, S, n_states], of the model after each token.
            embedded: [B, S + n_steps - 1, hidden]: the embedding of the token after each position.

        Returns:
            ``n_steps`` times [B, S, hidden]: at step k, position t guesses token t + 2 + k.
        """
        length = states.shape[1]
        cache: list[tuple[torch.Tensor, torch.Tensor]] = []
        x, guesses = self.fc(states), []
        for step in range(n_steps):
            x = self.midlayer(x, embedded[:, step : step + length], cache)
            guesses.append(self.norm(x))
        return guesses


def _angles(length: int, first: int, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(first, first + length).float(), frequencies)
    return angles.cos(), angles.sin()


def _turn(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding in halves (RoFormer, arXiv 2104.09864)."""
    cos, sin = (part.to(x.dtype) for part in angles)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
