"""``SamplingParams``: how one request is sampled. Names, meanings and defaults follow TensorRT-LLM's LLM API."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import RequestError
from .guided_params import GuidedDecodingParams
from .validate import first_problem

_F32_MAX = 3.4028234663852886e38

Probability = Annotated[float, Field(gt=0.0, le=1.0)]
TokenIds = tuple[int, ...]
Width = Annotated[int, Field(ge=1, le=1024)]


class SamplingParams(BaseModel):
    """Options of one request. Unknown names and values out of range raise ``RequestError`` and name the field.

    The draw is greedy when ``temperature``, ``top_k`` and ``top_p`` are all None, or when ``temperature`` is 0, or
    ``top_k`` is 1. Otherwise a missing ``temperature`` is 1, a missing ``top_k`` (or 0) keeps all tokens, and a missing
    ``top_p`` is 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False, use_attribute_docstrings=True)

    # Length and end.
    max_tokens: Annotated[int, Field(ge=1)] | None = 32
    """Most tokens to generate; None: up to the sequence limit."""
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """End-of-sequence and stop ids are forbidden before this many tokens."""
    end_id: Annotated[int, Field(ge=-1)] | None = None
    """End token in place of the model's own; -1: none."""
    pad_id: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] | None = None
    """Texts that end the output."""
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool = False

    # The draw.
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    top_p: Probability | None = None
    top_p_decay: Probability | None = None
    """Multiplies top_p after every token of the output."""
    top_p_min: Probability | None = None
    """Where the decay stops."""
    top_p_reset_ids: Annotated[int, Field(ge=0)] | None = None
    """The token after which top_p is what it was at first."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
    """64-bit seed; None: drawn when the request is admitted, and reported in the output."""

    # Logits before the draw.
    repetition_penalty: Annotated[float, Field(gt=0.0)] | None = None
    """Logits of tokens seen in prompt or output: divided by it when positive, multiplied when negative."""
    presence_penalty: float | None = None
    """Subtracted once from logits of tokens in the output."""
    frequency_penalty: float | None = None
    """Subtracted from logits of tokens in the output, once per occurrence."""
    embedding_bias: dict[int, float] | None = None
    """Added to logits: token id to bias (a dense sequence over the vocabulary is taken too)."""
    bad: tuple[str, ...] | None = None
    """Words that are never generated."""
    bad_token_ids: tuple[TokenIds, ...] | None = None
    """Token sequences that are never generated (an id stands for a sequence of one)."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """No sequence of so many tokens occurs twice in prompt and output together; 0: as often as it likes."""

    # What the output must look like.
    guided_decoding: GuidedDecodingParams | None = None
    """A schema, an expression or a grammar that the output follows."""

    # User code (core/processors.py).
    logits_processor: tuple[Callable[..., None] | str, ...] | None = None
    """Called in order with the logits of every row, before all other options (one or several): callables, or names of
    ``logits_processors`` of the engine."""
    apply_batched_logits_processor: bool = False
    """The engine's ``batched_logits_processor`` sees this request too, after its own."""

    # Several outputs.
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    best_of: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Outputs that are drawn; the n of highest cumulative logprob come back. With beam search: the beams."""
    use_beam_search: bool = False
    """Looks for the likeliest outputs, best_of beams at a time, in place of drawing."""
    beam_width_array: Annotated[tuple[Width, ...], Field(min_length=1, max_length=1024)] | None = None
    """Beams after the first token, the second, ...; the last holds for all that follow."""
    beam_search_diversity_rate: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    """Times the rank of a beam (0: the best), added to the sum of its children where children compete."""
    length_penalty: Annotated[float, Field(ge=-50.0, le=50.0)] | None = None
    """Outputs are compared by the sum of their logprobs over their length to the power of this; None: 0."""
    early_stopping: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None
    """1 or None: stop when best_of outputs have ended; 0: when no beam, at its length now, is better than the worst of
    them; another number: when none can become better."""

    # What comes back.
    logprobs: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """Logprobs of this many top tokens beside the generated one; 0: the generated one alone."""
    prompt_logprobs: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    logprobs_mode: Literal["raw", "processed"] = "raw"
    """raw: log-softmax of the model's logits. processed: after penalties, temperature and filters."""
    return_context_logits: bool = False
    """The model's logits after each token of the prompt come back, as ``RequestOutput.context_logits``."""
    return_generation_logits: bool = False
    """Those that tokens are drawn from come back, as ``CompletionOutput.generation_logits``."""
    return_perf_metrics: bool = False
    exclude_input_from_output: bool = True

    # Text.
    detokenize: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    """Keep only this many last tokens of the prompt."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    # Known to the API, not in this version: refused by name when set (see core/features.py).
    return_encoder_output: bool = False
    additional_model_outputs: Any = None

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            name, sentence = first_problem(type(self), error)
            raise RequestError(sentence, param=name or None) from None

    @field_validator("stop", "bad", mode="before")
    @classmethod
    def _one_or_many_texts(cls, value: Any) -> Any:
        texts = (value,) if isinstance(value, str) else value
        if texts is not None and any(text == "" for text in texts):
            raise ValueError("an empty text would match everywhere; give at least one character")
        return texts or None

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _one_or_many_ids(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else (tuple(value) if value else None)

    @field_validator("bad_token_ids", mode="before")
    @classmethod
    def _ids_or_sequences(cls, value: Any) -> Any:
        if not value:
            return None
        sequences = tuple((item,) if isinstance(item, int) else tuple(item) for item in value)
        if any(not sequence for sequence in sequences):
            raise ValueError("an empty token sequence would forbid everything")
        return sequences

    @field_validator("logits_processor", mode="before")
    @classmethod
    def _one_or_many_callables(cls, value: Any) -> Any:
        processors = value if value is None or isinstance(value, list | tuple) else (value,)
        if processors is not None and not all(callable(one) or isinstance(one, str) for one in processors):
            raise ValueError("give a callable (see LogitsProcessor), a name of the engine's own, or a list of them")
        return tuple(processors or ()) or None

    @field_validator("guided_decoding", mode="before")
    @classmethod
    def _from_dict(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        try:
            return GuidedDecodingParams(**value)
        except (TypeError, RequestError) as error:
            raise ValueError(str(error)) from None

    @field_validator("embedding_bias", mode="before")
    @classmethod
    def _sparse_bias(cls, value: Any) -> Any:
        if value is None or isinstance(value, dict):
            return value or None
        return {token: float(bias) for token, bias in enumerate(value) if float(bias) != 0.0} or None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of={self.best_of} is below n={self.n}; set best_of to at least n")
        if self.is_greedy and not self.use_beam_search and max(self.n, self.best_of or 1) > 1:
            raise ValueError(
                f"n={self.n}, best_of={self.best_of}: greedy outputs would all be equal; set temperature above 0, set"
                " use_beam_search, or ask for one"
            )
        if self.stop and not self.detokenize:
            raise ValueError("stop texts are looked for in the text: leave detokenize on, or give stop_token_ids")
        if self.min_tokens and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}")
        if self.top_p_reset_ids is not None and self.top_p_decay is None and self.top_p_min is None:
            raise ValueError("top_p_reset_ids goes with top_p_decay; without it there is nothing to set back")
        return self

    @model_validator(mode="after")
    def _beams_consistent(self) -> Self:
        if not self.use_beam_search:
            for name in ("beam_width_array", "beam_search_diversity_rate", "length_penalty", "early_stopping"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} goes with use_beam_search=True; without it, leave {name} out")
            return self
        if self.beam_width_array and self.best_of not in (None, max(self.beam_width_array)):
            raise ValueError(
                f"best_of={self.best_of} is not the largest of beam_width_array={self.beam_width_array}; leave it out"
            )
        if self.best_of is None and self.beam_width_array is None and self.n == 1:
            raise ValueError("use_beam_search=True: set best_of to the number of beams")
        if self.beam_width < self.n:
            raise ValueError(f"n={self.n} outputs of {self.beam_width} beams; set best_of to at least n")
        neutral = {"top_k": (None, 0), "top_p": (None, 1.0), "min_p": (None, 0.0), "top_p_decay": (None,)}
        neutral |= {"top_p_min": (None,)}
        for name, values in neutral.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is about drawing, and beam search draws nothing; leave {name} out")
        return self

    @property
    def beam_width(self) -> int:
        """Most beams at once; 0 without beam search."""
        if not self.use_beam_search:
            return 0
        return max(self.beam_width_array) if self.beam_width_array else self.best_of or self.n

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is taken (ties to the lower id)."""
        if self.temperature == 0.0 or self.top_k == 1:
            return True
        return self.temperature is None and not self.top_k and self.top_p is None


def check_tokens(sampling: SamplingParams, vocab_size: int) -> None:
    """Raises ``RequestError`` naming the field, if it holds a token id outside the vocabulary or a number that cannot
    be calculated with. For the front to call when a request comes in; ``bind`` calls it too."""
    fields: dict[str, Iterable[int]] = {
        "stop_token_ids": sampling.stop_token_ids or (),
        "top_p_reset_ids": () if sampling.top_p_reset_ids is None else (sampling.top_p_reset_ids,),
        "embedding_bias": sampling.embedding_bias or (),
        "bad_token_ids": [token for sequence in sampling.bad_token_ids or () for token in sequence],
    }
    for name, tokens in fields.items():
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"SamplingParams.{name}: token id {token} is not in the vocabulary (0 to {vocab_size - 1})",
                    param=name,
                )
    for token, bias in (sampling.embedding_bias or {}).items():
        if not bias <= _F32_MAX:
            raise RequestError(
                f"SamplingParams.embedding_bias: {bias} for token {token}; it must be a number, {_F32_MAX:.3g} at most "
                "(minus infinity forbids the token)",
                param="embedding_bias",
            )
    for name in ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if value is not None and not abs(value) <= _F32_MAX:
            raise RequestError(f"SamplingParams.{name}: {value} is not a finite float32 number", param=name)
