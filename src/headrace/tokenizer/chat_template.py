"""Chat templates: Jinja sources that come with a model.

What a template may use is what transformers gives it (``utils/chat_template_utils.py``): blocks trimmed, ``tojson``
without HTML escapes, ``raise_exception``, ``strftime_now``, loop controls, and ``{% generation %}`` blocks, which only
mark text. minijinja renders several times faster than jinja2; jinja2's sandbox takes over the few templates that
minijinja does not understand. Both get a copy of plain data: minijinja lets a template call the public methods of a
Python object.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import minijinja

from headrace.core.errors import RequestError

if TYPE_CHECKING:
    import jinja2

Now = Callable[[], datetime.datetime]

_NAME = "chat_template"


class _Refusal(Exception):
    """The template called ``raise_exception``."""


class Renderer(Protocol):
    def __call__(self, variables: Mapping[str, Any]) -> str: ...


class ChatTemplate:
    """A compiled template. Thread-safe. Raises ``RequestError`` if the source does not compile."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], now: Now) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._now = now
        self._fallback: Renderer | None = None
        self._render: Renderer
        try:
            self._render = minijinja_renderer(source, now)
        except minijinja.TemplateError:
            self._render = self._jinja2()

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text. Raises ``RequestError`` with the template's own message if it refuses, or with what went wrong."""
        if not all(isinstance(message, Mapping) and "role" in message for message in messages):
            raise RequestError("each message is an object with a 'role' (and a 'content')", param="messages")
        given = {**self._special_tokens, **variables, "messages": messages}
        try:
            try:
                return self._render(_plain(given))
            except minijinja.TemplateError:
                # A limit of minijinja, or an error in the template: jinja2, the reference, decides which.
                return self._jinja2()(_plain(given))
        except _Refusal as refusal:
            raise RequestError(f"the chat template refuses the messages: {refusal}", param="messages") from None
        except RequestError:
            raise
        except Exception as error:  # Whatever a template does wrong is the request's error.
            raise RequestError(
                f"the chat template failed: {type(error).__name__}: {error}", param="messages"
            ) from error

    def _jinja2(self) -> Renderer:
        if self._fallback is None:
            self._fallback = jinja2_renderer(self._source, self._now)
        return self._fallback


def minijinja_renderer(source: str, now: Now) -> Renderer:
    """Raises ``minijinja.TemplateError`` for what minijinja does not understand."""
    environment = minijinja.Environment(templates={_NAME: source})
    environment.pycompat = True
    environment.trim_blocks = True
    environment.lstrip_blocks = True
    environment.auto_escape_callback = lambda name: False
    environment.add_filter("tojson", _tojson)
    environment.add_function("raise_exception", _refuse)
    environment.add_function("strftime_now", lambda form: now().strftime(form))
    # Compiles now rather than at the first request.
    environment.undeclared_variables_in_template(_NAME)
    return lambda variables: environment.render_template(_NAME, **variables)


def jinja2_renderer(source: str, now: Now) -> Renderer:
    """Raises ``RequestError`` for a source that does not compile."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_blocks(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise RequestError(f"the chat template does not compile: {error}", param="chat_template") from error
    return lambda variables: template.render(**variables)


def _generation_blocks() -> type[jinja2.ext.Extension]:
    """``{% generation %}...{% endgeneration %}``: marks what the model wrote, for training; here it is plain text."""
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser

    class GenerationBlocks(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2's own way to name them

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    return GenerationBlocks


def _plain(value: Any, name: str = "variables") -> Any:
    """A deep copy that holds nothing but what JSON can: lists, objects, texts, numbers, booleans and None."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    raise RequestError(
        f"chat: {name!r} holds a {type(value).__name__}; a template takes lists, dicts, texts, numbers, bools, None",
        param=name,
    )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise _Refusal(message)
