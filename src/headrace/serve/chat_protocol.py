"""Bodies that hold a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from headrace.core.features import Missing

from .errors import UNION_TAG
from .protocol import FEW_ENTRIES, FEW_ITEMS, MISSING_SAMPLING, NOT_YET, Body, Generation, Text, refused

_TOOLS = f"tool calls are {NOT_YET}"
_MODALITIES = f"answers are text; other modalities of output, and settings of processors, are {NOT_YET}"
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
    Missing("reasoning_effort", "what a template knows of it is said with chat_template_kwargs"),
    Missing("verbosity", "the models served have no such switch; say it in a message", (None, "medium")),
    Missing("store", "nothing is stored here", (None, False)),
    Missing("chat_template", "a template is code, so it comes with the model and not with a request"),
    Missing("documents", f"documents are {NOT_YET}; put them into a message", (None, [])),
    Missing("prompt_token_ids", "a conversation is text here; /v1/completions takes token ids"),
)
_PARTS = {
    **dict.fromkeys(("input_image", "image_embeds"), "images in this form"),
    **dict.fromkeys(("input_audio", "audio_url"), "audio"),
    **dict.fromkeys(("video", "video_url"), "video"),
    "file": "files",
    "refusal": "refusals",
}
"""Content parts that the API has and this version has not: type, and what it stands for."""
_ROLES = ("tool", "function")


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ImageUrl(Body):
    missing = (Missing("detail", "a picture is read as the model's own preprocessing has it", (None, "auto")),)

    url: Text
    """A ``data:`` URL: nothing is fetched."""


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


def _kind(part: Any) -> str:
    """What a part is read as; one of another type is told what a text is."""
    return UNION_TAG + "image" if isinstance(part, Mapping) and part.get("type") == "image_url" else UNION_TAG + "text"


Part = Annotated[
    Annotated[TextPart, Tag(UNION_TAG + "text")] | Annotated[ImagePart, Tag(UNION_TAG + "image")], Discriminator(_kind)
]


def _parts(content: Any) -> Any:
    """A text as its one part. Refuses a part by what it is, before its fields are looked at."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise ValueError("give a text, or a list of parts such as {'type': 'text', 'text': ...}")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        what = _PARTS.get(kind) if isinstance(kind, str) else None
        if what:
            raise refused(
                "content", f"content: {what} ({kind}) are {NOT_YET}; parts of type 'text' and 'image_url' are taken"
            )
    return content


def _known_role(role: Any) -> Any:
    if isinstance(role, str) and role in _ROLES:
        raise refused("role", f"role {role!r}: {_TOOLS}; put the result into a message of the user")
    return role


# In one piece: a reference to a definition would lead nowhere in the document.
_IMAGE_PART = {name: part for name, part in ImagePart.model_json_schema().items() if name != "$defs"}
_IMAGE_PART["properties"] |= {"image_url": ImageUrl.model_json_schema()}
_PART = {"oneOf": [TextPart.model_json_schema(), _IMAGE_PART]}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _PART}]}


class Message(Body):
    """One turn. ``developer`` is handed to the template as ``system``."""

    missing = (
        *(Missing(name, _TOOLS, (None, [])) for name in ("tool_calls", "function_call", "tool_call_id")),
        *(Missing(name, f"{name} is {NOT_YET}", (None, [])) for name in ("refusal", "annotations", "audio")),
    )

    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_known_role)]
    content: Annotated[list[Part], FEW_ITEMS, BeforeValidator(_parts), WithJsonSchema(_CONTENT)]
    """A text is taken as a list of one part."""
    name: Text | None = None
    reasoning_content: Text | None = None
    """What an assistant thought: handed to the template, which mostly leaves it out."""

    @property
    def images(self) -> list[str]:
        """URLs of its pictures, in order."""
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]

    def plain(self) -> dict[str, Any]:
        """As a template takes it: texts are joined with line ends; where there are pictures the parts stay apart."""
        content: Any = "\n".join(part.text for part in self.content if isinstance(part, TextPart))
        if self.images:
            content = [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
                for part in self.content
            ]
        more = {"name": self.name, "reasoning_content": self.reasoning_content}
        named = {name: value for name, value in more.items() if value is not None}
        return {"role": "system" if self.role == "developer" else self.role, "content": content, **named}


_TAKEN = ("self", "messages", "tools", "add_generation_prompt", "chat_template")


def _free_names(variables: dict[str, Any]) -> dict[str, Any]:
    for name in variables:
        if name in _TAKEN:
            raise refused("chat_template_kwargs", f"chat_template_kwargs: {name!r} is set by the server")
    return variables


Messages = Annotated[list[Message], Field(min_length=1), FEW_ITEMS]
Variables = Annotated[dict[str, Any], *FEW_ENTRIES, AfterValidator(_free_names)]
"""Variables of the template, such as enable_thinking."""


class ChatCompletionRequest(Generation):
    """Body of /v1/chat/completions."""

    missing = (*MISSING_SAMPLING, *_MISSING_CHAT)

    messages: Messages
    add_generation_prompt: bool = True
    chat_template_kwargs: Variables | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """None: up to the sequence limit."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The old name of max_completion_tokens."""
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Annotated[dict[Text, Text], *FEW_ENTRIES] | None = None
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


_OF_MESSAGES = ("add_generation_prompt", "chat_template_kwargs")


class TokenizeRequest(Body):
    """Body of /tokenize: exactly one of prompt and messages."""

    missing = tuple(row for row in _MISSING_CHAT if row.option in ("tools", "chat_template", "mm_processor_kwargs"))

    model: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: Variables | None = None
    add_special_tokens: bool | None = None
    """None: True for a prompt, False for messages."""
    return_token_strs: bool = False
    """The answer gets token_strs: how each token is written."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refused("prompt", "give exactly one of prompt and messages")
        for name in _OF_MESSAGES:
            if self.prompt is not None and name in self.model_fields_set:
                raise refused(name, f"{name} goes with messages; a prompt is taken as it is")
        return self
