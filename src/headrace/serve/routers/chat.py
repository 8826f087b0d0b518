"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from headrace.core.errors import RequestError
from headrace.engine.results import CompletionOutput

from ..answer import Events, Whole
from ..body import JsonRoute
from ..chat_protocol import ChatCompletionRequest, Message
from ..deltas import deltas
from ..document import STREAM
from ..engine import Prepared
from ..job import Job
from ..logprobs import Entry, TokenTexts, chat_logprobs, prompt_logprobs
from ..params import chat_params, terms
from ..protocol import StreamOptions
from ..reasoning import NoSplit, Split, splitter
from ..serving import Serving, serving_of
from ..sse import ChunkWriter, encode, finish_json, finish_words
from ..usage import usage_of

router = APIRouter(route_class=JsonRoute)

_ROLE = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'


@router.post("/v1/chat/completions", responses=STREAM)
async def chat_completions(body: ChatCompletionRequest, serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Answers the last message of a conversation."""
    model = serving.check_model(body.model)
    sampling = chat_params(body)
    prompt = await templated(
        serving,
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        add_special_tokens=body.add_special_tokens,
        variables=body.chat_template_kwargs,
    )
    name = f"chatcmpl-{serving.new_id()}"
    job = Job(
        serving, [prompt], sampling, terms(body, serving.options.request_timeout, serving.adapter(model)), name=name
    )
    answer = _Answer(job, body, serving, model)
    return Events(answer.stream) if body.stream else Whole(answer.whole)


async def templated(
    serving: Serving,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    add_special_tokens: bool,
    variables: dict[str, Any] | None,
) -> Prepared:
    """Token ids of a conversation. Raises ``RequestError``."""
    tokenizer = serving.engine.tokenizer
    if tokenizer is None:
        raise RequestError("the model was loaded without a tokenizer; use /v1/completions with token ids")
    for index, message in enumerate(messages):
        if message.images and "image" not in serving.engine.media_kinds:
            raise RequestError(
                "content: this model reads text only; leave images (image_url) out", param=f"messages.{index}.content"
            )
    plain = [message.plain() for message in messages]
    text = await asyncio.to_thread(tokenizer.chat, plain, add_generation_prompt, **(variables or {}))
    images = [url for message in messages for url in message.images]
    media = {"image": images} if images else {}
    return await serving.engine.prepare(text, add_special_tokens=add_special_tokens, media=media)


class _Answer:
    """One request's way from outputs to JSON."""

    def __init__(self, job: Job, body: ChatCompletionRequest, serving: Serving, model: str) -> None:
        self._job = job
        self._texts = TokenTexts(serving.engine.tokenizer)
        self._top = (body.top_logprobs or 0) if body.logprobs else None
        self._k_prompt = body.prompt_logprobs
        self._usage = body.stream_options or StreamOptions()
        self._new_split = splitter(serving.engine.reasoning, job.prompts[0].token_ids)
        self._envelope = {
            "id": job.name,
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": serving.created,
            "model": model,
        }

    async def whole(self) -> bytes:
        with self._job as job:
            await job.finish()
            choices = [self._choice(one) for one in job.outputs[0].outputs]
            return encode({**self._envelope, "choices": choices, "usage": usage_of(job.outputs)})

    async def stream(self) -> AsyncIterator[bytes]:
        writer = ChunkWriter(self._envelope, b'"delta":{"content":', b"}", with_usage=self._usage.include_usage)
        splits: dict[int, Split | NoSplit] = {}
        with self._job as job:
            async for delta in deltas(job):
                one = delta.one
                split = splits.setdefault(delta.index, self._new_split())
                if self._usage.continuous_usage_stats:
                    writer.usage_so_far(usage_of(job.outputs))
                if delta.is_first:
                    yield writer.choice(delta.index, _ROLE)
                logprobs = self._logprobs(one.token_ids_diff, one.logprobs_diff) if one.logprobs_diff else None
                thinking, text = split.push(one.text_diff, delta.is_last)
                if thinking:
                    yield writer.choice(delta.index, _thought(thinking, None if text else logprobs))
                if text or (logprobs is not None and not thinking):
                    yield writer.text(delta.index, text, logprobs)
                if one.finish_reason is not None:
                    finish = finish_json(one.finish_reason, one.stop_reason)
                    yield writer.choice(delta.index, b'"delta":{},"logprobs":null,"finish_reason":' + finish)
            if self._usage.include_usage:
                yield writer.usage(usage_of(job.outputs))

    def _choice(self, one: CompletionOutput) -> dict[str, Any]:
        reason, stop_reason = finish_words(one.finish_reason or "", one.stop_reason)
        thinking, text = self._new_split().push(one.text, True)
        thought = {"reasoning_content": thinking} if thinking else {}
        return {
            "index": one.index,
            "message": {"role": "assistant", "content": text, "refusal": None, **thought},
            "logprobs": self._logprobs(one.token_ids, one.logprobs),
            "finish_reason": reason,
            "stop_reason": stop_reason,
            **self._of_prompt(),
        }

    def _of_prompt(self) -> dict[str, Any]:
        """``prompt_logprobs``, where they are asked for."""
        if self._k_prompt is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(self._texts, self._k_prompt, self._job.outputs[0])}

    def _logprobs(self, tokens: Sequence[int], entries: Sequence[Entry]) -> dict[str, Any] | None:
        return None if self._top is None else chat_logprobs(self._texts, self._top, tokens, entries)


def _thought(text: str, logprobs: dict[str, Any] | None) -> bytes:
    """The fields of a choice that holds a piece of thinking."""
    return b'"delta":{"reasoning_content":%b},"logprobs":%b,"finish_reason":null' % (encode(text), encode(logprobs))
