"""From a checkpoint to parameters: everything is checked first, then read tensor by tensor.

Peak memory is the parameters plus a few MiB a thread: a tensor goes from the checkpoint to its place some rows at a
time. Threads take whole parameters, so that a format may pack rows of different sources into one byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock

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


def plan_loading(
    parameters: Sequence[Parameter],
    checkpoint: Checkpoint,
    ignored: Sequence[str],
    ignored_below: Sequence[str] = (),
    below: Sequence[str] = ("",),
) -> Plan:
    """What fills what, in the order in which the files are read once.

    Args:
        ignored, ignored_below: ends and beginnings of names that no layer asks for and that may be there all the same.
        below: beginnings of the names that belong to these parameters; what else is there is another's.

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
    names = [name for name in checkpoint.names() if name.startswith(tuple(below))]
    spare = (name for name in names if not name.endswith(tuple(ignored)) and not name.startswith(tuple(ignored_below)))
    left = [name for name in spare if name not in wanted]
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.file_of(left[0])}: no layer of this model uses {', '.join(left[:_SHOWN])}{more}; the weights"
            " belong to another architecture or to another configuration (a bias, a head) than config.json says"
        )
    return [use for name in names if name in wanted for use in wanted[name]]


def fill_parameters(
    plan: Plan, parameters: Sequence[Parameter], checkpoint: Checkpoint, progress: Progress, threads: int = 1
) -> None:
    """Allocates the parameters and fills them, each on one of so many threads."""
    # All before the first is read: pages are taken when they are written, and what lives long stays out of the holes
    # that buffers of reading leave in the heap, so that the next buffer finds its hole again.
    for parameter in parameters:
        parameter.allocate()
    filling = _Filling(checkpoint, sum(parameter.nbytes for parameter in parameters), progress)
    work = _by_parameter(plan, filling.total // (4 * threads))
    if threads == 1:
        for uses in work:
            filling.fill(uses)
        return
    torch_threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="headrace-load") as pool:
        try:
            for done in as_completed([pool.submit(filling.fill, uses) for uses in work]):
                done.result()
        except BaseException:
            filling.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            # Those threads have set torch's number for their own reads, and the last one to do so has set it for all.
            torch.set_num_threads(torch_threads)


def _by_parameter(plan: Plan, large: int) -> list[Plan]:
    """What one thread does at a time: a parameter, in the order of the files but for those of more than ``large``
    bytes. They come first, or all would wait for the last one."""
    uses: dict[int, Plan] = {}
    for parameter, source in plan:
        uses.setdefault(id(parameter), []).append((parameter, source))
    return sorted(uses.values(), key=lambda use: use[0][0].nbytes <= large)


class _Filling:
    """Parameters being filled by several threads, and how far they are."""

    def __init__(self, checkpoint: Checkpoint, total: int, progress: Progress) -> None:
        self.total = total
        self.stopped = False
        """Somebody has failed: nothing more is to be read."""
        self._checkpoint = checkpoint
        self._progress = progress
        self._done = 0
        self._lock = Lock()

    def fill(self, uses: Plan) -> None:
        """Fills one parameter from its sources."""
        rows = 0
        for parameter, source in uses:
            if self.stopped:
                return
            # As the thread may be that allocated: a tensor made in this mode is only written in it.
            with torch.inference_mode():
                parameter.fill(source, self._checkpoint)
            # Padding counts with the rows, in proportion.
            before, rows = rows, rows + source.last - source.first
            nbytes, height = parameter.nbytes, parameter.shape[0]
            with self._lock:
                self._done += nbytes * rows // height - nbytes * before // height
                self._progress(self._done, self.total)
