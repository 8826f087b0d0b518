"""Requests that encode, under way: from bodies to prompts and from arrays to JSON."""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from headrace.core.errors import RequestError
from headrace.core.pooling import PoolingParams
from headrace.engine.results import EncodeOutput

from .encode_protocol import Encoding
from .engine import Prepared, Terms
from .errors import ApiError
from .job import Job
from .serving import Serving
from .usage import usage_of


class EncodeJob:
    """Prompts that are encoded together, and the answer's common part."""

    def __init__(self, serving: Serving, body: Encoding, kind: str) -> None:
        """``kind``: how the answer's id begins."""
        self._serving = serving
        self._model = serving.check_model(body.model)
        adapter = serving.adapter(self._model)
        self._terms = Terms(body.priority, body.cache_salt, serving.options.request_timeout, adapter)
        self._name = f"{kind}-{serving.new_id()}"
        self._outputs: list[EncodeOutput] = []

    async def rows(self, prompts: Sequence[Prepared], params: PoolingParams) -> list[np.ndarray]:
        """What each prompt gives: [width], or [rows, width]."""
        with Job(self._serving, prompts, params, self._terms, name=self._name) as job:
            await job.finish()
        outputs = [output for output in job.outputs if isinstance(output, EncodeOutput)]
        self._outputs += outputs
        found = [output.data for output in outputs]
        if any(data is None for data in found):
            limit = self._terms.timeout
            raise ApiError(503, f"the request was not done within its {limit:g} s; try again later", code="timeout")
        return [data for data in found if data is not None]

    def answer(self, items: list[dict[str, Any]], name: str = "data", **more: Any) -> dict[str, Any]:
        """The whole answer: ``items`` under ``name``."""
        usage = usage_of(self._outputs)
        del usage["completion_tokens"]
        envelope = {"id": self._name, "created": self._serving.created, "model": self._model}
        return {**envelope, **more, name: items, "usage": usage}


@contextmanager
def blamed_on(field: str) -> Iterator[None]:
    """What is wrong with a prompt is wrong with ``field`` of the body."""
    try:
        yield
    except RequestError as error:
        if error.param == "prompt":
            error.param = field
        raise


def refuse_unless(serving: Serving, gives: str, way_out: str) -> None:
    """Raises ``ApiError`` if the model gives something else."""
    found = serving.engine.pooling.gives
    if found != gives:
        raise ApiError(400, f"the model {serving.options.model_name!r} gives {found}; {way_out}", param="model")


def as_json(data: np.ndarray, encoding: str) -> Any:
    """A list (of lists), or base64 of little-endian float32."""
    if encoding == "float":
        return data.tolist()
    little = data if sys.byteorder == "little" else data.byteswap()
    return base64.b64encode(little.tobytes()).decode()


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Of two embeddings of length 1. Rounded once, whatever the machine."""
    return math.fsum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))


async def pair_scores(
    job: EncodeJob, serving: Serving, pairs: Sequence[tuple[str, str]], *, use_activation: bool | None
) -> list[float]:
    """How well the texts of each pair go together.

    A model with one label reads both texts at once, and its label's number is the score. Embeddings are compared by
    their cosine. Raises ``ApiError`` for a model that gives neither.
    """
    spec, engine = serving.engine.pooling, serving.engine
    if spec.gives == "classification" and spec.width == 1:
        prompts = [await engine.prepare_pair(*pair) for pair in pairs]
        return [float(data[0]) for data in await job.rows(prompts, PoolingParams(use_activation=use_activation))]
    if spec.gives != "embedding":
        labels = f" with {spec.width} labels" if spec.gives == "classification" else ""
        message = f"the model {serving.options.model_name!r} gives {spec.gives}{labels}; a score takes one label, or"
        raise ApiError(400, f"{message} embeddings. See /v1/classify and /pooling", param="model")
    if use_activation is not None:
        raise ApiError(400, "use_activation means nothing for embeddings; leave it out", param="use_activation")
    places = {text: place for place, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    prompts = [await engine.prepare(text, add_special_tokens=True) for text in places]
    vectors = await job.rows(prompts, PoolingParams())
    return [cosine(vectors[places[first]], vectors[places[second]]) for first, second in pairs]
