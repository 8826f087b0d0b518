"""The first weights of a head, by least squares: so that training begins with guesses that are often right.

The best linear guess at the model's last hidden state after the next token, out of the tapped states and the embedding
of that token, is put into the head: the part of the states into ``fc``, the part of the embedding, in as many ranks as
there are values in its key-value heads, into an attention that looks at its own row only. The MLP begins at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from .eagle3 import TrainableHead
from .lessons import Lesson
from .mtp import TrainableMtp

_RIDGE = 3e-3
"""Added to the diagonal of the normal equations, of its own mean."""
_GAP = 5.0
"""By how much the score of a row's own key is to be above that of its neighbour."""
_LOOK_PAIRS = 8
"""Pairs of the fastest frequencies: their scores fall the soonest with distance."""


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def first_weights(
    head: TrainableHead, lessons: Sequence[Lesson], embedding: torch.Tensor, norm: torch.Tensor, table: torch.Tensor
) -> None:
    """Fills ``head``.

    Args:
        embedding: [vocab, hidden], the model's.
        norm: [hidden], the weight of its final norm.
        table: [draft vocab, hidden], rows of its head.
    """
    n_states = head.fc.in_features
    of_states, of_embedding = _solved((_rows(lesson, embedding, norm) for lesson in lessons), n_states)
    with torch.no_grad():
        head.fc.weight.copy_(of_states)
        head.norm.weight.copy_(norm)
        head.lm_head.weight.copy_(table)
        head.midlayer.mlp.down_proj.weight.zero_()
        _look_at_own_row(head, _common(head, lessons, embedding, norm))
        _bring(head, of_embedding)


def first_mtp_weights(
    head: TrainableMtp, lessons: Sequence[Lesson], embedding: torch.Tensor, norm: torch.Tensor, table: torch.Tensor
) -> None:
    """The same for an MTP layer: the whole of the guess is what joins its two inputs, and the block adds nothing."""
    hidden = head.fc.out_features

    def rows(lesson: Lesson) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, goal = _rows(lesson, embedding, norm)
        return torch.cat([_unit(inputs[:, :hidden]), inputs[:, hidden:]], 1), goal

    of_states, of_embedding = _solved(map(rows, lessons), hidden)
    with torch.no_grad():
        head.fc.weight.copy_(torch.cat([of_embedding, of_states], 1))
        head.norm.weight.copy_(norm)
        head.lm_head.weight.copy_(table)
        head.layers[0].self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
        head.mlp.down_proj.weight.zero_()


def _solved(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], n_states: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of the states and of the embedding, [hidden, n_states] and [hidden, hidden], whose sum is nearest to the
    goals. ``pairs``: as ``_rows`` has them."""
    gram = cross = torch.zeros(())
    for inputs, goal in pairs:
        gram = gram + inputs.T @ inputs
        cross = cross + inputs.T @ goal
    # States and embeddings are of different size: each part is regularised in its own measure.
    scale = gram.diagonal().clone()
    for part in (slice(0, n_states), slice(n_states, len(scale))):
        scale[part] = gram.diagonal()[part].mean()
    solution = torch.linalg.solve(gram + torch.diag(_RIDGE * scale), cross).T
    return solution[:, :n_states], solution[:, n_states:]


def _rows(lesson: Lesson, embedding: torch.Tensor, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, n_states + hidden] and [R, hidden]: what is known, and the last hidden state one token on, at size one."""
    first = max(0, lesson.n_prompt - 1)
    following = _unit(embedding[lesson.tokens[first + 1 :]])
    inputs = torch.cat([lesson.states[first:-1].float(), following], 1)
    return inputs, lesson.last[first + 1 :].float() / norm


def _common(
    head: TrainableHead, lessons: Sequence[Lesson], embedding: torch.Tensor, norm: torch.Tensor
) -> torch.Tensor:
    """[hidden]: a direction d with d . x = 1 or so for every row x that the attention reads."""
    read = torch.cat(
        [_unit(head.fc(_rows(lesson, embedding, norm)[0][:, : head.fc.in_features])) for lesson in lessons[:16]]
    )
    mean = read.mean(0)
    return mean / (read @ mean).mean()


def _look_at_own_row(head: TrainableHead, common: torch.Tensor) -> None:
    """Queries and keys that do not depend on the row, so that scores fall with the distance and with nothing else."""
    attention, shape = head.midlayer.self_attn, head.midlayer.self_attn.shape
    half, hidden = shape.head_dim // 2, shape.hidden
    frequencies = shape.theta ** -(torch.arange(min(_LOOK_PAIRS, half)) / half)
    fall = 2.0 * (1.0 - frequencies.cos()).sum().item() * shape.head_dim**-0.5
    strength = (_GAP / fall) ** 0.5
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.normal_(0.0, 0.01)
        rows = projection.weight.view(-1, 2, half, 2 * hidden)[:, :, : len(frequencies)]
        rows[..., hidden:] += strength * common


def _bring(head: TrainableHead, of_embedding: torch.Tensor) -> None:
    """The map of the embedding through values and output: the heads that share values bring an equal part each."""
    attention, shape = head.midlayer.self_attn, head.midlayer.self_attn.shape
    left, strengths, right = torch.linalg.svd(of_embedding)
    rank = min(len(strengths), shape.n_kv_heads * shape.head_dim)
    roots = strengths[:rank].sqrt()
    attention.v_proj.weight.normal_(0.0, 0.002)
    attention.v_proj.weight[:rank, : shape.hidden] += roots[:, None] * right[:rank]
    attention.o_proj.weight.zero_()
    each = shape.n_heads // shape.n_kv_heads
    columns = attention.o_proj.weight.view(shape.hidden, shape.n_kv_heads, each, shape.head_dim)
    brought = torch.zeros(shape.hidden, shape.n_kv_heads * shape.head_dim)
    brought[:, :rank] = left[:, :rank] * roots
    columns += brought.view(shape.hidden, shape.n_kv_heads, 1, shape.head_dim) / each
