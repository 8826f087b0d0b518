"""A request under way: one or several prompts, followed together and cancelled together.

There is one way out for every kind of answer: leaving the ``with`` block. Whatever has not ended by then is cancelled:
the client hung up, a sibling failed, or the server is going down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Self

from headrace.core.errors import EngineDeadError
from headrace.core.pooling import PoolingParams
from headrace.core.sampling_params import SamplingParams
from headrace.engine.results import RequestOutput

from .engine import Prepared, Terms
from .errors import ApiError
from .serving import Serving

_SHUTTING_DOWN = "the server is shutting down; the request was cancelled"


class Job:
    """Submits on entry. Use it as a context manager around everything that reads it."""

    def __init__(
        self,
        serving: Serving,
        prompts: Sequence[Prepared],
        params: SamplingParams | PoolingParams,
        terms: Terms,
        *,
        name: str | None,
    ) -> None:
        """``name``: the id of the answer, for records; None: a probe, of which none is kept."""
        self._serving = serving
        self.name = name
        self.prompts = prompts
        self._params = params
        self._terms = terms
        self._adapter = None if terms.lora is None else terms.lora.lora_name
        self.outputs: list[RequestOutput] = []
        """One for each prompt, each with ``n`` outputs."""

    @property
    def sampling(self) -> SamplingParams:
        """Of prompts that are continued."""
        assert isinstance(self._params, SamplingParams)
        return self._params

    def __enter__(self) -> Self:
        self._serving.jobs.add(self)
        self._serving.metrics.begun(self._adapter)
        try:
            for prompt in self.prompts:
                self.outputs.append(self._serving.engine.submit(prompt, self._params, self._terms))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._serving.jobs.discard(self)
        metrics = self._serving.metrics
        metrics.ended(self._adapter)
        for output in self.outputs:
            if output.finished and output.error is None:
                metrics.finished(output)
                self._serving.perf.add(self.name, output)
            else:
                self._abort(output)
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            metrics.gone()
        elif error is not None:
            metrics.failed()

    def cancel(self) -> None:
        """Ends what runs; the reader gets a 503."""
        for output in self.outputs:
            self._abort(output)

    @staticmethod
    def _abort(output: RequestOutput) -> None:
        # A dead engine takes no more calls: it has ended everything already.
        with contextlib.suppress(EngineDeadError):
            output.abort()

    async def finish(self) -> None:
        """Waits for the end. Raises the error of the first output that has one."""
        async for _ in self.steps():
            pass

    def steps(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        """(which prompt, its output) after every step that moved it; ``text_diff`` and its like are what is new."""
        return self._one(self.outputs[0]) if len(self.outputs) == 1 else self._many()

    async def _one(self, output: RequestOutput) -> AsyncIterator[tuple[int, RequestOutput]]:
        """The usual case, without a task for every step."""
        while not output.finished:
            await output.step()
            _refuse_cancelled(output)
            yield 0, output

    async def _many(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        turns = [aiter(output) for output in self.outputs]
        pending = {asyncio.ensure_future(anext(turn, None)): which for which, turn in enumerate(turns)}
        try:
            while pending:
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    which = pending.pop(task)
                    output = task.result()
                    if output is None:
                        continue
                    _refuse_cancelled(output)
                    yield which, output
                    # Asked again only now: a turn of the loop forgets what was new in the one before.
                    pending[asyncio.ensure_future(anext(turns[which], None))] = which
        finally:
            for task in pending:
                if not task.cancel() and not task.cancelled():
                    # It has failed together with the one that is being raised: asked for, so that nobody logs it.
                    task.exception()


def _refuse_cancelled(output: RequestOutput) -> None:
    for one in output.outputs:
        if one.finish_reason == "cancelled":
            raise ApiError(503, _SHUTTING_DOWN, code="shutting_down")
