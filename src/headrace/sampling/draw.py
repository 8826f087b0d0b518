"""The draw: Gumbel-max in its exponential-race form, over fixed-point masses.

A token with mass m and noise word w waits E / m, E = -log((2 w + 1) / 2^33), and the shortest wait wins, ties to the
lower id. E is an exponential variable, so a token wins with the probability m / (sum of masses); -log(E / m) is
log(m) plus Gumbel noise, which is where the usual name comes from. A token of mass 0 never wins.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .numerics import log

_SLACK = 1.0 + 2.0**-20
"""Far above the rounding errors of what it guards."""


def race(mass: Tensor, noise: Tensor, ids: Tensor | None = None) -> Tensor:
    """The winner of each row: int64 [R], a column of ``mass`` or, where ``ids`` names the tokens, one of them.

    ``mass``, ``noise`` and ``ids``: int64 [R, N]; each row has a mass above 0.

    The log is taken of the few that can win: as -log(u) >= 1 - u, a token with (1 - u) / m above the wait of another
    one has lost.
    """
    least = noise.to(torch.float64).mul_(-(2.0**-32)).add_(1.0 - 2.0**-33).div_(mass)
    best = _argmin(least)
    bound = wait(mass.gather(1, best), noise.gather(1, best)).mul_(_SLACK)
    rows, columns = (least <= bound).nonzero(as_tuple=True)
    waits = wait(mass[rows, columns], noise[rows, columns])
    tokens = columns if ids is None else ids[rows, columns]
    return _first_by_wait(rows, waits, tokens)


def wait(mass: Tensor, noise: Tensor) -> Tensor:
    """E / m in float64 of masses and noise words (int64, any shape); +inf where the mass is 0."""
    u = (noise * 2 + 1).to(torch.float64) * 2.0**-33
    return -log(u) / mass.to(torch.float64)


def _argmin(values: Tensor) -> Tensor:
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmin(axis=-1))[:, None]
    return values.argmin(-1, keepdim=True)


def _first_by_wait(rows: Tensor, waits: Tensor, tokens: Tensor) -> Tensor:
    """Per row (each occurs, in rising order) the token of least wait, then of least id."""
    sorted_rows = rows.cpu().numpy()
    order = np.lexsort((tokens.cpu().numpy(), waits.cpu().numpy(), sorted_rows))
    starts = np.flatnonzero(np.diff(sorted_rows, prepend=-1))
    return tokens[torch.from_numpy(order[starts]).to(tokens.device)]
