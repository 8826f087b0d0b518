"""An MTP layer that can be trained (arXiv 2412.19437), of Llama's kind: it guesses with the model's own head."""

from __future__ import annotations

import torch
from torch import nn

from .layers import MLP, ChainAttention, HeadShape, KeysAndValues, Norm


class _Block(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden, shape.eps)
        self.self_attn = ChainAttention(shape, shape.hidden)
        self.post_attention_layernorm = Norm(shape.hidden, shape.eps)
        self.mlp = MLP(shape)

    def forward(self, x: torch.Tensor, cache: KeysAndValues) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class TrainableMtp(nn.Module):
    """Parameters go by their names in a ``LlamaMTPModel``, without ``mtp.``; ``lm_head`` is rows of the model's."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.pre_fc_norm_embedding = Norm(shape.hidden, shape.eps)
        self.pre_fc_norm_hidden = Norm(shape.hidden, shape.eps)
        self.fc = nn.Linear(2 * shape.hidden, shape.hidden, bias=False)
        self.layers = nn.ModuleList([_Block(shape)])
        self.norm = Norm(shape.hidden, shape.eps)
        self.lm_head = nn.Linear(shape.hidden, shape.draft_vocab, bias=False)

    @property
    def mlp(self) -> MLP:
        return self.layers[0].mlp  # type: ignore[return-value]

    def forward(self, states: torch.Tensor, embedded: torch.Tensor, n_steps: int) -> list[torch.Tensor]:
        """As ``TrainableHead.forward``; ``states``: [B, S, hidden], what the model's head reads."""
        length = states.shape[1]
        cache: KeysAndValues = []
        x, guesses = states, []
        for step in range(n_steps):
            e = self.pre_fc_norm_embedding(embedded[:, step : step + length])
            x = self.norm(self.layers[0](self.fc(torch.cat([e, self.pre_fc_norm_hidden(x)], 2)), cache))
            guesses.append(x)
        return guesses
