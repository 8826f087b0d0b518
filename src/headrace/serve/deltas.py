"""What is new, output by output: the common ground of all streams."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from headrace.engine.results import CompletionOutput, RequestOutput

from .job import Job


class Delta(msgspec.Struct, frozen=True):
    """News of one output. ``one.text_diff`` and its like hold it, until the next delta is asked for."""

    index: int
    """Number of the choice: prompt by prompt, n for each."""
    which: int
    """Which prompt."""
    output: RequestOutput
    one: CompletionOutput
    is_first: bool
    is_last: bool


async def deltas(job: Job) -> AsyncIterator[Delta]:
    """Deltas as the steps come; none for a step that shows nothing (half a character, text that may become a stop)."""
    begun: set[int] = set()
    ended: set[int] = set()
    shows_ids = not job.sampling.detokenize
    async for which, output in job.steps():
        for one in output.outputs:
            is_last = one.finish_reason is not None
            if not (is_last or one.text_diff or one.logprobs_diff or (shows_ids and one.token_ids_diff)):
                continue
            index = which * job.sampling.n + one.index
            if index in ended:
                continue
            yield Delta(index, which, output, one, index not in begun, is_last)
            begun.add(index)
            if is_last:
                ended.add(index)
