"""Bodies of requests that encode: embeddings, labels, scores. Names are those of OpenAI's, Cohere's and vLLM's APIs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from headrace.core.features import Missing
from headrace.core.pooling import PoolingType

from .protocol import MAX_PROMPTS, NOT_YET, Body, Prompts, Text, refused, unicode

_NO_STREAM = Missing("stream", "the answer is one piece: there is nothing to stream", (None, False))
_ONE_TASK = Missing("task", "the model decides what it gives; pooling_type says from which rows")


class Encoding(Body):
    """What all of them share."""

    missing: ClassVar[tuple[Missing, ...]] = (_NO_STREAM, _ONE_TASK)

    model: Text | None = None
    """None: the model that is served."""
    user: Text | None = None
    """A label for the operator; it changes nothing."""
    priority: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None


class _OfInput(Encoding):
    missing = (*Encoding.missing, Missing("messages", f"encoding a conversation is {NOT_YET}: send its text as input"))

    input: Prompts
    """A text, texts, token ids or lists of them."""
    add_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    """Keep only this many last tokens of each."""


class _OfVectors(_OfInput):
    encoding_format: Literal["float", "base64"] = "float"
    """base64: of little-endian float32 numbers."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Keep this many first numbers."""
    normalize: bool | None = None


class EmbeddingRequest(_OfVectors):
    """Body of /v1/embeddings."""

    pooling_type: Literal["last", "mean", "cls"] | None = None
    """Which rows count; None: the model's own way."""


class PoolingRequest(_OfVectors):
    """Body of /pooling: whatever the model gives."""

    pooling_type: PoolingType | None = None
    use_activation: bool | None = None
    step_tag_id: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None


class ClassifyRequest(_OfInput):
    """Body of /v1/classify."""

    use_activation: bool | None = None
    """False: logits in the place of probabilities."""


def _texts(value: Any) -> tuple[str, ...]:
    """One text or several."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("give a text, or a list of texts")
    if len(texts) > MAX_PROMPTS:
        raise ValueError(f"{len(texts)} texts in one request; at most {MAX_PROMPTS} are taken")
    return tuple(unicode(text) for text in texts)


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
Texts = Annotated[tuple[str, ...], PlainValidator(_texts), WithJsonSchema(_TEXTS_SCHEMA)]


class ScoreRequest(Encoding):
    """Body of /v1/score: text_1 with each of text_2, or one by one."""

    text_1: Texts
    text_2: Texts
    use_activation: bool | None = None

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.text_1) not in (1, len(self.text_2)):
            many = f"{len(self.text_1)} texts for {len(self.text_2)} in text_2"
            raise refused("text_1", f"text_1 has {many}; give one, or as many")
        return self


class RerankRequest(Encoding):
    """Body of /v1/rerank."""

    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    """How many of the best are given; None: all."""
    return_documents: bool = True
    use_activation: bool | None = None
