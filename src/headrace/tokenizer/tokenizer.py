"""``Tokenizer``: one interface over the vocabularies of folders and GGUF files."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from headrace.core.errors import RequestError

from .chat_template import ChatTemplate
from .token_bytes import byte_decoding

_NO_CHAT = "the model has no chat template; give chat_template, or send the prompt as plain text"


class Tokenizer:
    """Text to ids and back. Thread-safe.

    Args:
        backend: a vocabulary of the ``tokenizers`` library. Its truncation and padding are switched off.
        eos_ids: ids that end a sequence.
        special_tokens: by role, as ``tokenizer_config.json`` names them (``bos_token``, ``eos_token``, ...).
        chat_templates: sources by name; ``default``, and ``tool_use`` for conversations with tools if there is one.
        now: local time for templates that print the date.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.eos_ids = frozenset(eos_ids)
        self.special_tokens = dict(special_tokens or {})
        self.bos_id = self._id_of("bos_token")
        self.special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None
        self.byte_decoding = byte_decoding(decoder)
        """None for vocabularies whose decoder is more than a concatenation of bytes (WordPiece, for one)."""
        self._bytes: dict[int, bytes] = {}
        self._now = now
        self._chat_templates = dict(chat_templates or {})
        self._compiled: dict[str, ChatTemplate] = {}

    @property
    def vocab_size(self) -> int:
        """Added tokens included. The model may have more rows (padding)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._chat_templates)

    def show(self, token_ids: Iterable[int]) -> None:
        """These are part of the text from now on, also where the vocabulary calls them special."""
        self.special_ids -= frozenset(token_ids)

    def template_has(self, text: str) -> bool:
        """Whether a chat template of the model writes ``text``."""
        return any(text in source for source in self._chat_templates.values())

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Sources by name."""
        return self._chat_templates

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling, or None if no token has this id."""
        return self.backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of ``text``. ``add_special_tokens`` adds begin and end tokens if the model's own tokenizer does.

        The result of ``chat`` holds its special tokens as text: encode it with ``add_special_tokens=False``.
        """
        # A batch of one: unlike `encode` it lets other threads run meanwhile, and without offsets it is faster.
        try:
            return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError as error:
            raise RequestError(f"expected a text of valid Unicode, found {text!r:.60}", param="prompt") from error

    def encode_pair(self, first: str, second: str, add_special_tokens: bool = True) -> tuple[list[int], int]:
        """Ids of two texts that are read together, with the special tokens that the model has around and between them,
        and where those of the second begin."""
        try:
            both = self.backend.encode_batch_fast([(first, second)], add_special_tokens=add_special_tokens)[0]
        except TypeError as error:
            raise RequestError("expected two texts of valid Unicode", param="prompt") from error
        types = both.type_ids
        return both.ids, types.index(1) if 1 in types else len(types)

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD, ids without a token become nothing.

        Where the vocabulary is one of bytes, tokens are joined as they are and ``spaces_between_special_tokens`` makes
        no difference. A run of byte tokens that is not valid UTF-8 keeps its valid characters, as sentencepiece does.
        """
        self.check_spaces(spaces_between_special_tokens)
        if self.byte_decoding is None:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        skipped = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join([self.token_bytes(token) for token in ids if token not in skipped]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.byte_decoding.strip_first_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token, none for an id without a token; only for vocabularies of bytes."""
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        if self.byte_decoding is None:
            raise ValueError("this vocabulary is not one of bytes")
        if not 0 <= token_id < 1 << 32:
            raise RequestError(f"token id {token_id} is out of range", param="token_ids")
        token = self.backend.id_to_token(token_id)
        data = b"" if token is None else self.byte_decoding.token_bytes(token)
        self._bytes[token_id] = data
        return data

    def check_spaces(self, spaces_between_special_tokens: bool) -> None:
        """Raise ``RequestError`` where special tokens cannot be joined without spaces."""
        if not spaces_between_special_tokens and self.byte_decoding is None:
            raise RequestError(
                "spaces_between_special_tokens=False: the decoder of this vocabulary always puts spaces; leave it True",
                param="spaces_between_special_tokens",
            )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as the model was trained to read it.

        ``chat_template`` replaces the model's own; ``kwargs`` are variables of the template (``enable_thinking``).
        Raises ``RequestError`` if there is no template or the template refuses the messages.
        """
        source = chat_template if chat_template is not None else self._template_source(tools)
        template = self._compiled.get(source)
        if template is None:
            template = ChatTemplate(source, self.special_tokens, self._now)
            if chat_template is None:
                self._compiled[source] = template
        return template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **kwargs)

    def use_chat_template(self, source: str) -> None:
        """Takes ``source`` in place of the model's own templates. Raises ``RequestError`` if it does not compile."""
        template = ChatTemplate(source, self.special_tokens, self._now)
        self._chat_templates = {"default": source}
        self._compiled = {source: template}

    def _template_source(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        templates = self._chat_templates
        if not templates:
            raise RequestError(_NO_CHAT, param="chat_template")
        if tools and "tool_use" in templates:
            return templates["tool_use"]
        if "default" not in templates:
            raise RequestError(
                f"the model has no default chat template, only {', '.join(templates)}; give chat_template",
                param="chat_template",
            )
        return templates["default"]

    def _id_of(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)
