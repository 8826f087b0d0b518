"""From a checkpoint to parameters: everything is checked first, then read tensor by tensor.

Peak memory is the parameters plus a few MiB: a tensor goes from the checkpoint to its place some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from headrace.core.errors import CheckpointError
from headrace.layers.base import Parameter, Source
from headrace.weights.checkpoint import Checkpoint, expect

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""

Plan = list[tuple[Parameter, Source]]

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_SHOWN = 5


def no_progress(done: int, total: int) -> None:
    """Shows nothing."""


def tensor_shapes(parameters: Iterable[Parameter]) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensor name -> shape, of all sources."""
    return {source.name: source.shape for parameter in parameters for source in parameter.sources}


def plan_loading(parameters: Sequence[Parameter], checkpoint: Checkpoint, ignored: Sequence[str]) -> Plan:
    """What fills what, in the order in which the files are read once.

    Args:
        ignored: ends of names that no layer asks for and that may be there all the same.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape or kind.
    """
    wanted: dict[str, Plan] = {}
    for parameter in parameters:
        for source in parameter.sources:
            wanted.setdefault(source.name, []).append((parameter, source))
    for name, uses in wanted.items():
        expect(checkpoint, name, uses[0][1].shape)
        if checkpoint.dtype(name) not in _FLOATS:
            raise CheckpointError(
                f"{checkpoint.file_of(name)}: tensor {name!r} is stored as {checkpoint.dtype(name)}, not as plain"
                " floats; a quantised checkpoint of this kind is not supported"
            )
    names = checkpoint.names()
    left = [name for name in names if name not in wanted and not name.endswith(tuple(ignored))]
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.file_of(left[0])}: no layer of this model uses {', '.join(left[:_SHOWN])}{more}; the weights"
            " belong to another architecture or to another configuration (a bias, a head) than config.json says"
        )
    return [use for name in names if name in wanted for use in wanted[name]]


def fill_parameters(plan: Plan, parameters: Sequence[Parameter], checkpoint: Checkpoint, progress: Progress) -> None:
    """Allocates the parameters and fills them."""
    # All before the first is read: pages are taken when they are written, and what lives long stays out of the holes
    # that buffers of reading leave in the heap, so that the next buffer finds its hole again.
    for parameter in parameters:
        parameter.allocate()
    total = sum(parameter.nbytes for parameter in parameters)
    rows = dict.fromkeys(map(id, parameters), 0)
    done = 0
    for parameter, source in plan:
        parameter.fill(source, checkpoint)
        before = rows[id(parameter)]
        rows[id(parameter)] = after = before + source.last - source.first
        # Padding counts with the rows, in proportion.
        nbytes, height = parameter.nbytes, parameter.shape[0]
        done += nbytes * after // height - nbytes * before // height
        progress(done, total)
