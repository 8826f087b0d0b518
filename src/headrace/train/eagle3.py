"""An EAGLE-3 head that can be trained (arXiv 2503.01840): one layer that guesses what comes after the next token."""

from __future__ import annotations

import torch
from torch import nn

from .layers import MLP, ChainAttention, HeadShape, KeysAndValues, Norm


class _MidLayer(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden, shape.eps)
        self.hidden_norm = Norm(shape.hidden, shape.eps)
        self.self_attn = ChainAttention(shape, 2 * shape.hidden)
        self.post_attention_layernorm = Norm(shape.hidden, shape.eps)
        self.mlp = MLP(shape)

    def forward(self, x: torch.Tensor, e: torch.Tensor, cache: KeysAndValues) -> torch.Tensor:
        both = torch.cat([self.input_layernorm(e), self.hidden_norm(x)], 2)
        x = x + self.self_attn(both, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class TrainableHead(nn.Module):
    """Parameters go by their names in the public checkpoint layout."""

    def __init__(self, shape: HeadShape, n_states: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n_states, shape.hidden, bias=False)
        self.midlayer = _MidLayer(shape)
        self.norm = Norm(shape.hidden, shape.eps)
        self.lm_head = nn.Linear(shape.hidden, shape.draft_vocab, bias=False)

    @property
    def mlp(self) -> MLP:
        return self.midlayer.mlp

    def forward(self, states: torch.Tensor, embedded: torch.Tensor, n_steps: int) -> list[torch.Tensor]:
        """What ``lm_head`` takes, for each step of the chains.

        Args:
            states: [B, S, n_states], of the model after each token.
            embedded: [B, S + n_steps - 1, hidden]: the embedding of the token after each position.

        Returns:
            ``n_steps`` times [B, S, hidden]: at step k, position t guesses token t + 2 + k.
        """
        length = states.shape[1]
        cache: KeysAndValues = []
        x, guesses = self.fc(states), []
        for step in range(n_steps):
            x = self.midlayer(x, embedded[:, step : step + length], cache)
            guesses.append(self.norm(x))
        return guesses
