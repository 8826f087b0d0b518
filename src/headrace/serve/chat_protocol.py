"""Bodies that hold a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from headrace.core.features import Missing

from .protocol import MISSING_SAMPLING, NOT_YET, Body, Generation, Text, refused

_TOOLS = f"tool calls are {NOT_YET}"
_MODALITIES = f"the models served read and write text only; other modalities are {NOT_YET}"
_MISSING_CHAT = (
    Missing("tools", _TOOLS, (None, [])),
    Missing("tool_choice", _TOOLS, (None, "none", "auto")),
    Missing("parallel_tool_calls", _TOOLS, (None, False, True)),
    Missing("functions", _TOOLS, (None, [])),
    Missing("function_call", _TOOLS, (None, "none", "auto")),
    Missing("modalities", _MODALITIES, (None, ["text"])),
    Missing("audio", _MODALITIES),
    Missing("mm_processor_kwargs", _MODALITIES),
    Missing("prediction", f"predicted outputs are {NOT_YET}"),
    Missing("web_search_options", "headrace does not search the web"),
    Missing("reasoning_effort", f"reasoning parsers are {NOT_YET}; see chat_template_kwargs"),
    Missing("thinking_token_budget", f"reasoning parsers are {NOT_YET}"),
    Missing("store", "nothing is stored here", (None, False)),
    Missing("chat_template", "a template is code, so it comes with the model and not with a request"),
    Missing("documents", f"documents are {NOT_YET}; put them into a message", (None, [])),
)


class TextPart(Body):
    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn. ``developer`` is handed to the template as ``system``."""

    missing = (
        *(Missing(name, _TOOLS, (None, [])) for name in ("tool_calls", "function_call", "tool_call_id")),
        *(Missing(name, f"{name} is {NOT_YET}", (None, [])) for name in ("refusal", "annotations", "audio")),
    )

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None

    def plain(self) -> dict[str, str]:
        """As a template takes it; parts are joined with line ends."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        named = {} if self.name is None else {"name": self.name}
        return {"role": "system" if self.role == "developer" else self.role, "content": text, **named}


_TAKEN = ("self", "messages", "tools", "add_generation_prompt", "chat_template")


class Templated(Body):
    """A conversation and what its template is told."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the template, such as enable_thinking."""

    @model_validator(mode="after")
    def _free_names(self) -> Self:
        for name in self.chat_template_kwargs or ():
            if name in _TAKEN:
                raise refused("chat_template_kwargs", f"chat_template_kwargs: {name!r} is set by the server")
        return self


class ChatCompletionRequest(Templated, Generation):
    """Body of /v1/chat/completions."""

    missing = (*MISSING_SAMPLING, *_MISSING_CHAT)

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """None: up to the sequence limit."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The old name of max_completion_tokens."""
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[Text, Text] | None = None
    """A label, as user."""
    add_special_tokens: bool = False
    """The template has written them already."""

    @model_validator(mode="after")
    def _chat_consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "top_logprobs goes with logprobs=true only")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise refused("max_tokens", "max_tokens is the old name of max_completion_tokens; give one of them")
        return self


class TokenizeRequest(Body):
    """Body of /tokenize: exactly one of prompt and messages."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    """None: True for a prompt, False for messages."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refused("prompt", "give exactly one of prompt and messages")
        return self
