"""/tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from headrace.core.errors import RequestError
from headrace.tokenizer.tokenizer import Tokenizer

from ..body import JsonRoute
from ..chat_protocol import TokenizeRequest
from ..logprobs import TokenTexts
from ..protocol import DetokenizeRequest
from ..serving import Serving, serving_of
from ..sse import encode
from .chat import templated

router = APIRouter(route_class=JsonRoute)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Token ids of a prompt or of a conversation."""
    serving.check_model(body.model)
    special = body.add_special_tokens
    if body.messages is not None:
        prompt = await templated(
            serving,
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            add_special_tokens=bool(special),
            variables=body.chat_template_kwargs,
        )
    else:
        prompt = await serving.engine.prepare(body.prompt or "", add_special_tokens=special is not False)
    ids = prompt.token_ids
    answer: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": serving.engine.max_seq_len}
    if body.return_token_strs:
        texts = TokenTexts(serving.engine.tokenizer)
        answer["token_strs"] = [texts.text(token) for token in ids]
    return Response(encode(answer), media_type="application/json")


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Text of token ids; special tokens are shown unless told otherwise."""
    serving.check_model(body.model)
    tokenizer = serving.engine.tokenizer
    if tokenizer is None:
        raise RequestError("the model was loaded without a tokenizer", param="tokens")
    text = await asyncio.to_thread(_text, tokenizer, body)
    return Response(encode({"prompt": text}), media_type="application/json")


def _text(tokenizer: Tokenizer, body: DetokenizeRequest) -> str:
    unknown = next((token for token in body.tokens if tokenizer.id_to_token(token) is None), None)
    if unknown is not None:
        raise RequestError(f"token id {unknown} is not in the vocabulary", param="tokens")
    return tokenizer.decode(body.tokens, body.skip_special_tokens)
