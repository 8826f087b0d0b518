"""Request bodies of the OpenAI API, with the extensions that the engine has.

A field that nobody knows, and one that is known but asks for something this version does not have, are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from headrace.core.errors import ConfigError, RequestError, did_you_mean
from headrace.core.features import Missing
from headrace.core.guided_params import GuidedDecodingParams
from headrace.core.retention import DEFAULT_PRIORITY, KvCacheRetentionConfig

from .guided import GUIDED_FIELDS, RESPONSE_FORMAT_SCHEMA, read_guided, read_response_format

MAX_PROMPTS = 512
MAX_SEQUENCES = 1024
"""Outputs of one HTTP request: prompts x n."""
MAX_ITEMS = 4096
"""Of a list or an object in a request, where nothing else limits it."""


def unicode(text: str) -> str:
    """JSON can spell half a surrogate pair; nothing behind this point could encode it."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("the text is not valid Unicode: it holds half a surrogate pair") from None
    return text


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_ITEMS:
        raise ValueError(f"{len(value)} entries; at most {MAX_ITEMS} are taken")
    return value


# A list stops at its first error and an object is counted before it is read: otherwise a body of megabytes, all of it
# wrong, takes half a minute to collect its errors, and everybody else's stream waits.
FEW_ITEMS = Field(max_length=MAX_ITEMS, fail_fast=True)
FEW_ENTRIES = (Field(max_length=MAX_ITEMS), BeforeValidator(_few))
Text = Annotated[str, AfterValidator(unicode)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
Probability = Annotated[float, Field(gt=0.0, le=1.0)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]

NOT_YET = "not in this version"

MISSING_SAMPLING = (
    Missing("return_context_logits", "logits come from the Python API only; prompt_logprobs is there", (None, False)),
    Missing("lora_request", "name the adapter as the model; POST /v1/load_lora_adapter loads one"),
    Missing("disaggregated_params", f"disaggregated serving is {NOT_YET}"),
    Missing("conversation_params", f"requests are not routed; {NOT_YET}"),
    Missing("agent_hierarchy", f"requests are scheduled one by one, by priority; hierarchies are {NOT_YET}"),
    Missing("prompt_ignore_length", f"penalties over a part of the prompt are {NOT_YET}", (None, 0)),
    Missing("thinking_token_budget", f"budgets of thinking are {NOT_YET}; max_tokens limits all of the output"),
    Missing("service_tier", "there is one tier; see priority", (None, "auto", "default")),
    Missing("prompt_cache_key", "a prefix is found by its tokens; cache_salt keeps tenants apart"),
    Missing("prompt_cache_retention", "kv_cache_retention_config says how long a prompt is kept"),
)


def refused(name: str, message: str) -> PydanticCustomError:
    # As a value, since braces in it would be placeholders; and pydantic stops at text that is no Unicode.
    message, name = (text.encode("utf-8", "backslashreplace").decode() for text in (message, name))
    return PydanticCustomError("refused_field", "{text}", {"text": message, "param": name})


class Body(BaseModel):
    """Base: strict types, no field that is not known."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    missing: ClassVar[tuple[Missing, ...]] = ()
    """Fields that the API has and this version has not."""

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        rows = {row.option: row for row in cls.missing}
        kept = {}
        for name, value in data.items():
            row = rows.get(name)
            if row is None and name not in cls.model_fields:
                known = f"Known: {', '.join(sorted(cls.model_fields))}"
                raise refused(name, f"there is no field {name!r} here.{did_you_mean(name, cls.model_fields)} {known}")
            if row is None:
                kept[name] = value
            elif value not in row.neutral:
                raise refused(name, f"{name}: {row.reason}. Leave it out")
        return kept


def _stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return ()
    if not isinstance(texts, list) or len(texts) > 64 or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("give a text, or a list of at most 64 texts, none of them empty")
    return tuple(unicode(text) for text in texts)


_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}


class StreamOptions(Body):
    include_usage: bool = False
    """A last chunk without choices carries the usage; it is null in the others."""
    continuous_usage_stats: bool = False
    """Every chunk carries the usage so far."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise refused("stream_options", "continuous_usage_stats goes with include_usage=true only")
        return self


class TokenRange(Body):
    """Tokens of the prompt, after the chat template, and what they are worth."""

    token_start: Annotated[int, Field(ge=0, lt=1 << 31)]
    token_end: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    priority: Annotated[int, Field(ge=0, le=100)] = DEFAULT_PRIORITY
    duration_ms: Annotated[float, Field(gt=0, le=1e12)] | None = None


class Retention(Body):
    """``KvCacheRetentionConfig``."""

    token_range_retention_configs: Annotated[list[TokenRange], Field(max_length=1024, fail_fast=True)] | None = None
    decode_retention_priority: Annotated[int, Field(ge=0, le=100)] = DEFAULT_PRIORITY
    decode_duration_ms: Annotated[float, Field(gt=0, le=1e12)] | None = None

    def config(self) -> KvCacheRetentionConfig:
        """Raises ``RequestError``."""
        try:
            return KvCacheRetentionConfig(**self.model_dump(exclude_unset=True, exclude_none=True))
        except ConfigError as error:
            message = f"kv_cache_retention_config: {error}"
            raise RequestError(message, param="kv_cache_retention_config") from None


BEAM_FIELDS: dict[str, tuple[Any, ...]] = {
    "beam_width_array": (None,),
    "beam_search_diversity_rate": (None,),
    "length_penalty": (None, 1.0),
    "early_stopping": (None, False),
}
"""Fields that say nothing without ``use_beam_search``, and the values that are taken all the same: clients send them
as their own defaults."""


class Generation(Body):
    """What completions and chat share."""

    model: Text | None = None
    """None: the model that is served."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Annotated[tuple[str, ...], PlainValidator(_stops), WithJsonSchema(_TEXTS)] = ()
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """None: 1, as everywhere in this API."""
    top_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], *FEW_ENTRIES] | None = None
    """Token id, as text, to bias."""
    user: Text | None = None
    """A label for the operator; it changes nothing."""
    safety_identifier: Text | None = None
    """A label, as user."""

    # Beyond OpenAI: names and meanings of SamplingParams.
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_p_decay: Probability | None = None
    top_p_min: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """0: as none."""
    top_p_reset_ids: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[int], FEW_ITEMS] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """A choice gets prompt_logprobs: for each prompt token but the first, its logprob and the k most likely."""
    logprobs_mode: Literal["raw", "processed"] = "raw"
    priority: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    response_format: Annotated[
        GuidedDecodingParams | None, PlainValidator(read_response_format), WithJsonSchema(RESPONSE_FORMAT_SCHEMA)
    ] = None
    """type: text, json_object, json_schema, and beyond OpenAI: json, regex, ebnf, structural_tag."""
    guided_json: dict[str, Any] | Text | None = None
    """As response_format of type json."""
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], FEW_ITEMS] | None = None
    """The text is one of these."""
    guided_grammar: Text | None = None
    logits_processor: Text | Annotated[list[Text], FEW_ITEMS] | None = None
    """Names of processors that the server was started with."""
    apply_batched_logits_processor: bool = False
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    kv_cache_retention_config: Retention | None = None
    """How long the cache keeps what the request computes."""
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """Outputs that are compared, of which n come back; with use_beam_search: the beams. A stream then has each choice
    in one piece."""
    use_beam_search: bool | None = None
    beam_width_array: Annotated[list[Annotated[int, Field(ge=1, le=128)]], FEW_ITEMS] | None = None
    beam_search_diversity_rate: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    length_penalty: Annotated[float, Field(ge=-50.0, le=50.0)] | None = None
    early_stopping: bool | Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None

    def guided(self) -> GuidedDecodingParams | None:
        """What the text must look like, whichever field says so."""
        asked = {name: getattr(self, name) for name in GUIDED_FIELDS if getattr(self, name) is not None}
        if len(asked) + (self.response_format is not None) > 1:
            raise refused("response_format", f"give one of response_format, {', '.join(GUIDED_FIELDS)}, not several")
        for name, value in asked.items():
            try:
                return read_guided(name, value)
            except ValueError as error:
                raise refused(name, f"{name}: {error}") from None
        return self.response_format

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.guided()
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "stream_options goes with stream=true only")
        if self.prompt_logprobs is not None and self.stream:
            raise refused("prompt_logprobs", "prompt_logprobs goes with stream=false only; echo with logprobs streams")
        if not self.use_beam_search:
            for name, neutral in BEAM_FIELDS.items():
                if getattr(self, name) not in neutral:
                    raise refused(name, f"{name} goes with use_beam_search=true only")
        for token in self.logit_bias or ():
            if not (token.isascii() and token.isdigit() and len(token) <= 10):
                raise refused("logit_bias", f"logit_bias: {token!r:.50} is not a token id")
        return self


def _prompts(value: Any) -> tuple[str | list[int], ...]:
    """One text, several, token ids, or several lists of them."""
    if isinstance(value, str):
        return (unicode(value),)
    if isinstance(value, list) and value and _is_ids(value):
        return (value,)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) or _is_ids(one) for one in value):
        raise ValueError("give a text, a list of texts, a list of token ids, or a list of lists of token ids")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"{len(value)} prompts in one request; at most {MAX_PROMPTS} are taken")
    return tuple(unicode(one) if isinstance(one, str) else one for one in value)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in value)


_IDS = {"type": "array", "items": {"type": "integer"}}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        _IDS,
        {"type": "array", "items": _IDS},
    ]
}


Prompts = Annotated[tuple[str | list[int], ...], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
"""A text, texts, token ids or lists of token ids."""


class CompletionRequest(Generation):
    """Body of /v1/completions."""

    missing = (*MISSING_SAMPLING, Missing("suffix", f"filling in the middle is {NOT_YET}", (None, "")))

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    echo: bool = False
    """The text starts with the prompt; with logprobs, those of the prompt come first."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True
    detokenize: bool = True
    """False: the text of a choice is empty, and it has token_ids instead."""

    @model_validator(mode="after")
    def _completion_consistent(self) -> Self:
        if self.echo and not self.detokenize:
            raise refused("echo", "echo is text: it goes with detokenize=true only")
        if len(self.prompt) * max(self.n or 1, self.best_of or 1) > MAX_SEQUENCES:
            many = f"{len(self.prompt)} prompts x n={self.n}, best_of={self.best_of}"
            raise refused("n", f"{many} are more than {MAX_SEQUENCES} outputs; send several requests")
        return self


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: Text | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 32)]], Field(fail_fast=True)]
    skip_special_tokens: bool = False


class LoadAdapterRequest(Body):
    """Body of /v1/load_lora_adapter."""

    lora_name: Annotated[Text, Field(min_length=1, max_length=256)]
    """What requests name as their model."""
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)]
    """Folder on the server, in the layout of peft."""


class UnloadAdapterRequest(Body):
    """Body of /v1/unload_lora_adapter."""

    lora_name: Annotated[Text, Field(min_length=1, max_length=256)]
