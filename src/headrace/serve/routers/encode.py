"""/v1/embeddings, /v1/classify, /v1/score, /v1/rerank and /pooling."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Response

from headrace.core.pooling import PoolingParams

from ..answer import Whole
from ..body import JsonRoute
from ..encode import EncodeJob, as_json, blamed_on, pair_scores, refuse_unless
from ..encode_protocol import ClassifyRequest, EmbeddingRequest, PoolingRequest, RerankRequest, ScoreRequest
from ..serving import Serving, serving_of
from ..sse import encode

router = APIRouter(route_class=JsonRoute)
TheServing = Annotated[Serving, Depends(serving_of)]


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, serving: TheServing) -> Response:
    """A vector for each input."""
    job = EncodeJob(serving, body, "embd")
    refuse_unless(serving, "embedding", "POST /v1/classify, /v1/score or /pooling")

    async def whole() -> bytes:
        rows = await _encoded(job, body, serving, "dimensions", "normalize", "pooling_type")
        items = [
            {"object": "embedding", "index": index, "embedding": as_json(data, body.encoding_format)}
            for index, data in enumerate(rows)
        ]
        return encode(job.answer(items, object="list"))

    return Whole(whole)


@router.post("/v1/classify")
async def classify(body: ClassifyRequest, serving: TheServing) -> Response:
    """The most likely label of each input, and the probabilities of all."""
    job = EncodeJob(serving, body, "classify")
    refuse_unless(serving, "classification", "POST /v1/embeddings or /pooling")

    async def whole() -> bytes:
        labels = serving.engine.pooling.labels
        rows = await _encoded(job, body, serving, "use_activation")
        items = [
            {
                "index": index,
                "label": labels[int(data.argmax())],
                "probs": data.tolist(),
                "num_classes": len(labels),
            }
            for index, data in enumerate(rows)
        ]
        return encode(job.answer(items, object="list"))

    return Whole(whole)


@router.post("/pooling")
async def pooling(body: PoolingRequest, serving: TheServing) -> Response:
    """Whatever the model gives for each input: an embedding, labels, a reward, or a row for each token or step."""
    job = EncodeJob(serving, body, "pool")

    async def whole() -> bytes:
        fields = ("dimensions", "normalize", "pooling_type", "use_activation", "step_tag_id")
        rows = await _encoded(job, body, serving, *fields)
        items = [
            {"object": "pooling", "index": index, "data": as_json(data, body.encoding_format)}
            for index, data in enumerate(rows)
        ]
        return encode(job.answer(items, object="list"))

    return Whole(whole)


@router.post("/v1/score")
async def score(body: ScoreRequest, serving: TheServing) -> Response:
    """How well each text of ``text_2`` goes with ``text_1``."""
    job = EncodeJob(serving, body, "score")
    firsts = body.text_1 * (len(body.text_2) if len(body.text_1) == 1 else 1)

    async def whole() -> bytes:
        pairs = list(zip(firsts, body.text_2, strict=True))
        with blamed_on("text_2"):
            scores = await pair_scores(job, serving, pairs, use_activation=body.use_activation)
        items = [{"object": "score", "index": index, "score": score} for index, score in enumerate(scores)]
        return encode(job.answer(items, object="list"))

    return Whole(whole)


@router.post("/v1/rerank")
async def rerank(body: RerankRequest, serving: TheServing) -> Response:
    """The documents, those first that go best with the query; the earlier one first where scores are equal."""
    job = EncodeJob(serving, body, "rerank")

    async def whole() -> bytes:
        pairs = [(body.query, document) for document in body.documents]
        with blamed_on("documents"):
            scores = await pair_scores(job, serving, pairs, use_activation=body.use_activation)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
        items: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        if body.return_documents:
            items = [{**item, "document": {"text": body.documents[item["index"]]}} for item in items]
        return encode(job.answer(items, "results"))

    return Whole(whole)


async def _encoded(
    job: EncodeJob, body: EmbeddingRequest | ClassifyRequest | PoolingRequest, serving: Serving, *fields: str
) -> list[np.ndarray]:
    """``fields``: those of the body that are fields of ``PoolingParams`` of the same name."""
    options = {name: getattr(body, name) for name in fields}
    with blamed_on("input"):
        prompts = [await serving.engine.prepare(one, add_special_tokens=body.add_special_tokens) for one in body.input]
        return await job.rows(prompts, PoolingParams(truncate_prompt_tokens=body.truncate_prompt_tokens, **options))
