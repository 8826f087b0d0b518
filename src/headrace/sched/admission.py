"""Whether a request can be served at all: decided once, from limits that never change. Safe to ask in any thread."""

from __future__ import annotations

from headrace.cache.manager import CacheManager
from headrace.core.errors import PromptTooLongError, RequestError
from headrace.core.media import EncodedMedia
from headrace.core.request import Request

from .options import SchedulerOptions


class Admission:
    """Refuses what can never fit."""

    def __init__(self, manager: CacheManager, options: SchedulerOptions) -> None:
        self._manager = manager
        self._options = options

    def max_length(self, request: Request) -> int:
        """Most tokens, prompt and output, that a sequence of the request may have.

        ``max_tokens=None`` means up to ``max_seq_len``, or what the cache holds for one sequence alone if that is less.
        A prompt that is pooled counts one more than it has: the place of a token that is never drawn.
        Raises ``RequestError`` (an empty prompt) or ``PromptTooLongError``.
        """
        self._check_beams(request.sampling.beam_width)
        n_prompt, n_new, limit = len(request.prompt_token_ids), request.sampling.max_tokens, self._options.max_seq_len
        if request.pooling is not None:
            n_new, limit = 1, limit + 1
        if n_prompt == 0:
            raise RequestError("the prompt is empty; give at least one token", param="prompt")
        if n_prompt + (n_new or 1) > limit:
            raise PromptTooLongError(
                f"{n_prompt} prompt tokens and max_tokens={n_new or 1} exceed max_seq_len={limit};"
                " shorten the prompt, lower max_tokens, or raise max_seq_len",
                param="max_tokens",
            )
        if not self._options.chunked_prefill and n_prompt > self._options.max_num_tokens:
            why, way_out = "chunked prefill is off", "turn enable_chunked_prefill on, or raise max_num_tokens"
            if self._options.whole_prompts:
                why, way_out = "the model reads a prompt as a whole", "raise max_num_tokens"
            raise PromptTooLongError(
                f"{n_prompt} prompt tokens exceed max_num_tokens={self._options.max_num_tokens}, and {why}; {way_out}",
                param="prompt",
            )
        return self._fit_cache(request, n_prompt, limit if n_new is None else n_prompt + n_new, n_new)

    def _check_beams(self, width: int) -> None:
        for name in ("max_beam_width", "max_batch_size"):
            most = getattr(self._options, name)
            if most is not None and width > most:
                raise RequestError(
                    f"best_of: {width} beams run at once, and {name} is {most}; lower best_of, or raise {name}",
                    param="best_of",
                )

    def _fit_cache(self, request: Request, n_prompt: int, length: int, n_new: int | None) -> int:
        """``length``, or less if no number of new tokens was asked for and the cache holds less."""
        rows = 1 if self._options.chunked_prefill else n_prompt
        # The last token is never computed, so it takes no place in the cache.
        media = EncodedMedia(request.media) if request.media else None
        fits = self._manager.longest_alone(length - 1, rows, media) + 1
        if fits < n_prompt + (n_new or 1):
            beside = f" beside its {len(request.media)} media" if request.media else ""
            raise PromptTooLongError(
                f"{n_prompt} prompt tokens and max_tokens={n_new or 1} exceed the KV cache, which holds {fits - 1}"
                f" tokens of one sequence{beside}; shorten the prompt, lower max_tokens, or raise"
                " KvCacheConfig.max_tokens",
                param="max_tokens",
            )
        return fits
