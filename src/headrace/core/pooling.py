"""Pooling: what a request that samples nothing takes from the rows of its prompt, and what a model has to give.

``PoolingParams`` is what a user writes, ``PoolingSpec`` what a model offers; ``resolve_pooling`` makes one ``Pooling``
of the two, with every default filled in, which is what travels to the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import RequestError
from .validate import first_problem

PoolingType = Literal["last", "mean", "cls", "all", "step"]
Activation = Literal["none", "softmax", "sigmoid"]


class PoolingParams(BaseModel):
    """Options of one ``encode``. Unknown names and values out of range raise ``RequestError`` and name the field.

    None is the model's own choice, everywhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    pooling_type: PoolingType | None = None
    """Which rows count: the last, the mean of all, the first (cls), all of them, or those of a step separator."""
    normalize: bool | None = None
    """Embeddings: divide by the Euclidean length. On unless turned off."""
    use_activation: bool | None = None
    """Models with labels: softmax or sigmoid over the logits, as the model's configuration says; False: logits."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Embeddings: keep this many first numbers, before they are normalised."""
    step_tag_id: Annotated[int, Field(ge=0)] | None = None
    """The token that ends a step, for pooling_type "step"."""
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    """Keep only this many last tokens of the prompt."""
    add_special_tokens: bool = True

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            name, sentence = first_problem(type(self), error)
            raise RequestError(sentence, param=name or None) from None


class PoolingSpec(msgspec.Struct, frozen=True):
    """What a model gives for a pooled row."""

    gives: Literal["embedding", "classification", "reward", "step rewards"] = "embedding"
    width: int = 1
    """Numbers a row."""
    pooling_type: PoolingType = "last"
    """The model's own."""
    pooling_types: tuple[PoolingType, ...] = ("last", "mean", "cls", "all")
    """All that mean something for it."""
    activation: Activation = "none"
    labels: tuple[str, ...] = ()
    """Names of the numbers, for a classification."""
    step_tag: str | None = None
    """The text of the token that ends a step."""
    generates: bool = True
    """It has logits over a vocabulary as well: it can generate."""


class Pooling(msgspec.Struct, frozen=True):
    """``PoolingParams`` with every default resolved."""

    pooling_type: PoolingType
    normalize: bool = False
    activation: Activation = "none"
    dimensions: int | None = None
    step_tag_id: int | None = None

    @property
    def is_single(self) -> bool:
        """One row comes out, whatever the prompt."""
        return self.pooling_type not in ("all", "step")

    @property
    def needs_all_rows(self) -> bool:
        """Every row of the prompt has to be computed: none may come from the cache."""
        return self.pooling_type != "last"


class Pooled(msgspec.Struct, frozen=True, array_like=True):
    """The result: fp32 numbers, row by row."""

    width: int
    values: bytes
    """Of this machine's byte order."""
    is_single: bool = True
    """All rows were pooled into one."""


def resolve_pooling(
    params: PoolingParams, spec: PoolingSpec, step_tag_id: int | None, token_ids: Sequence[int]
) -> Pooling:
    """What ``params`` mean for a model and a prompt.

    Args:
        step_tag_id: id of the model's own ``step_tag`` in its vocabulary, if it is there.

    Raises:
        RequestError: the model has no such pooling, or the prompt has no step.
    """
    kind = params.pooling_type or spec.pooling_type
    if kind not in spec.pooling_types:
        allowed = ", ".join(spec.pooling_types)
        raise _no("pooling_type", kind, f"this model gives {spec.gives}; its pooling_type is one of {allowed}")
    if params.truncate_prompt_tokens is not None and spec.pooling_types == ("cls",):
        raise _no("truncate_prompt_tokens", params.truncate_prompt_tokens, "it would cut the token that counts")
    is_embedding = spec.gives == "embedding"
    for name in ("normalize", "dimensions") if not is_embedding else ("use_activation",):
        value = getattr(params, name)
        if value is not None:
            raise _no(name, value, f"this model gives {spec.gives}, and {name} means nothing there; leave it out")
    if params.dimensions is not None and params.dimensions > spec.width:
        raise _no("dimensions", params.dimensions, f"the model's embeddings have {spec.width} numbers")
    if params.step_tag_id is not None and kind != "step":
        raise _no("step_tag_id", params.step_tag_id, 'it goes with pooling_type="step" only')
    step = None
    if kind == "step":
        step = step_tag_id if params.step_tag_id is None else params.step_tag_id
        if step is None:
            raise RequestError(
                f"PoolingParams.step_tag_id: the vocabulary has no {spec.step_tag!r}; say which token ends a step",
                param="step_tag_id",
            )
        if step not in token_ids:
            raise RequestError(
                f"the prompt has no step: token {step} ({spec.step_tag!r} by default) does not occur in it; put it"
                ' after every step, or give pooling_type="all"',
                param="prompt",
            )
    return Pooling(
        kind,
        normalize=is_embedding and params.normalize is not False,
        activation="none" if params.use_activation is False else spec.activation,
        dimensions=params.dimensions,
        step_tag_id=step,
    )


def _no(name: str, value: Any, why: str) -> RequestError:
    return RequestError(f"PoolingParams.{name}={value!r}: {why}", param=name)
