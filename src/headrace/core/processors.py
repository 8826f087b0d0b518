"""What users may do to logits: the callbacks of ``SamplingParams`` and ``LLM``. Names follow TensorRT-LLM's LLM API.

A processor changes logits in place, before every other option of sampling. It is called for each row that is sampled,
with all tokens before it: under speculation that is a row for each draft too, and a row whose draft is then refused was
called for nothing. So what it does must follow from ``token_ids``; what it remembers between calls is its own affair.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def is_import_path(text: str) -> bool:
    """Whether ``text`` has the form ``module:object``."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text) is not None


def import_processor(setting: str, path: str) -> Any:
    """What ``path`` names, and of a class an instance. ``setting``: who asks. Raises ``ConfigError``."""
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if isinstance(found, type):
            found = found()
    except Exception as error:
        raise ConfigError(
            f"{setting}={path!r}: {type(error).__name__}: {error}. The engine imports it: install the module,"
            " or put its folder into PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"{setting}={path!r} is a {type(found).__name__}, and nothing that can be called")
    return found


class LogitsProcessor(ABC):
    """A processor of one request. Any callable of this signature will do."""

    @abstractmethod
    def __call__(
        self, req_id: int, logits: Tensor, token_ids: list[list[int]], stream_ptr: int | None, client_id: int | None
    ) -> None:
        """Changes ``logits``.

        Args:
            req_id: of this output; each of a request's n has its own.
            logits: float32 [1, 1, V]; only during the call.
            token_ids: one list: prompt, output and drafts so far.
            stream_ptr: None: there is no CUDA stream.
            client_id: ``RequestOutput.request_id``.
        """


class BatchedLogitsProcessor(ABC):
    """A processor of all requests that ask for it with ``apply_batched_logits_processor``, called once a step.

    If it raises it is called again for each row by itself, so that only those requests fail which it cannot take.
    """

    @abstractmethod
    def __call__(
        self,
        req_ids: list[int],
        logits: list[Tensor],
        token_ids: list[list[list[int]]],
        stream_ptr: int | None,
        client_ids: list[int | None],
    ) -> None:
        """Changes ``logits``. Lists with an element for each row, as ``LogitsProcessor`` takes it."""
