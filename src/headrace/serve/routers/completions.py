"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from headrace.engine.results import CompletionOutput, RequestOutput

from ..answer import Events, Whole
from ..body import JsonRoute
from ..deltas import deltas
from ..document import STREAM
from ..job import Job
from ..logprobs import CompletionLogprobs, Entry, TokenTexts, prompt_logprobs
from ..params import completion_params, terms
from ..protocol import CompletionRequest, StreamOptions
from ..serving import Serving, serving_of
from ..sse import ChunkWriter, encode, finish_json, finish_words
from ..usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions", responses=STREAM)
async def completions(body: CompletionRequest, serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Continues each prompt. Choices are numbered prompt by prompt, n for each."""
    model = serving.check_model(body.model)
    sampling = completion_params(body)
    engine = serving.engine
    prompts = [await engine.prepare(one, add_special_tokens=body.add_special_tokens) for one in body.prompt]
    name = f"cmpl-{serving.new_id()}"
    job = Job(
        serving, prompts, sampling, terms(body, serving.options.request_timeout, serving.adapter(model)), name=name
    )
    answer = _Answer(job, body, serving, model)
    return Events(answer.stream) if body.stream else Whole(answer.whole)


class _Answer:
    """One request's way from outputs to JSON."""

    def __init__(self, job: Job, body: CompletionRequest, serving: Serving, model: str) -> None:
        self._job = job
        self._body = body
        self._tokenizer = serving.engine.tokenizer
        self._texts = TokenTexts(self._tokenizer)
        self._usage = body.stream_options or StreamOptions()
        self._envelope = {
            "id": job.name,
            "object": "text_completion",
            "created": serving.created,
            "model": model,
        }

    async def whole(self) -> bytes:
        with self._job as job:
            await job.finish()
            choices = [self._choice(which, output, one) for which, output, one in _numbered(job)]
            choices = [{"index": index, **choice} for index, choice in enumerate(choices)]
            return encode({**self._envelope, "choices": choices, "usage": usage_of(job.outputs)})

    async def stream(self) -> AsyncIterator[bytes]:
        writer = ChunkWriter(self._envelope, b'"text":', b"", with_usage=self._usage.include_usage)
        rows: dict[int, CompletionLogprobs] = {}
        with self._job as job:
            async for delta in deltas(job):
                one = delta.one
                text, tokens, entries = self._echo(delta.which, delta.output, one) if delta.is_first else ("", [], [])
                text += one.text_diff
                logprobs = None
                if self._body.logprobs is not None:
                    row = rows.setdefault(delta.index, CompletionLogprobs(self._texts, self._body.logprobs))
                    logprobs = row.rows([*tokens, *one.token_ids_diff], [*entries, *one.logprobs_diff])
                finish = finish_json(one.finish_reason, one.stop_reason) if one.finish_reason else b"null"
                if not self._body.detokenize:
                    finish += b',"token_ids":' + encode(one.token_ids_diff)
                if self._usage.continuous_usage_stats:
                    writer.usage_so_far(usage_of(job.outputs))
                yield writer.text(delta.index, text, logprobs, finish)
            if self._usage.include_usage:
                yield writer.usage(usage_of(job.outputs))

    def _choice(self, which: int, output: RequestOutput, one: CompletionOutput) -> dict[str, Any]:
        text, tokens, entries = self._echo(which, output, one)
        logprobs = None
        if self._body.logprobs is not None:
            row = CompletionLogprobs(self._texts, self._body.logprobs)
            logprobs = row.rows([*tokens, *one.token_ids], [*entries, *one.logprobs])
        reason, stop_reason = finish_words(one.finish_reason or "", one.stop_reason)
        choice: dict[str, Any] = {
            "text": text + one.text,
            "logprobs": logprobs,
            "finish_reason": reason,
            "stop_reason": stop_reason,
        }
        if not self._body.detokenize:
            choice["token_ids"] = one.token_ids
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._texts, self._body.prompt_logprobs, output)
        return choice

    def _echo(
        self, which: int, output: RequestOutput, one: CompletionOutput
    ) -> tuple[str, list[int], list[Entry | None]]:
        """What goes before an output: text, token ids and, with logprobs, their entries. Nothing without ``echo``."""
        if not self._body.echo:
            return "", [], []
        ids = output.prompt_token_ids
        given = self._job.prompts[which]
        if given.text is not None and len(given.token_ids) == len(ids):
            text = given.text
        else:
            text = "" if self._tokenizer is None else self._tokenizer.decode(ids)
        # Nothing comes before the first token of a prompt, so a prompt of one has no entries of its own.
        return text, ids, list(one.prompt_logprobs or output.outputs[0].prompt_logprobs) or [None]


def _numbered(job: Job) -> list[tuple[int, RequestOutput, CompletionOutput]]:
    return [(which, output, one) for which, output in enumerate(job.outputs) for one in output.outputs]
