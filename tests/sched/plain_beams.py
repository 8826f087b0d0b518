"""Beam search over the sim model in the plainest way: whole texts in lists, and a list of digests for each."""

from __future__ import annotations

import math

from headrace.core.plan import Candidate, FinishReason, SlotInit, TokenLogprobs
from headrace.core.request import Request
from headrace.executor.sim_model import SimModel, blockwise_sum


def plain_beams(
    model: SimModel, request: Request, init: SlotInit
) -> list[tuple[tuple[int, ...], float, tuple[TokenLogprobs, ...], FinishReason]]:
    """(tokens, sum of logprobs, logprobs, end) of the request's best outputs."""
    sampling = request.sampling
    widths = list(sampling.beam_width_array or [sampling.best_of or sampling.n])
    most, penalty = max(widths), sampling.length_penalty or 0.0
    room = init.max_length - init.n_prompt
    early = 1 if sampling.early_stopping is None else sampling.early_stopping
    living: list[tuple[list[Candidate], float]] = [([], 0.0)]
    digests: dict[tuple[int, ...], list[int]] = {(): []}
    ended: list[tuple[float, list[Candidate], float, FinishReason]] = []
    while True:
        length = len(living[0][0]) + 1
        width = widths[length - 1] if length <= len(widths) else widths[-1]
        children = []
        for rank, (text, total) in enumerate(living):
            for one in _candidates(model, init, tuple(candidate.token for candidate in text), digests):
                bonus = (sampling.beam_search_diversity_rate or 0.0) * rank
                children.append(((total + one.logprob) + bonus, [*text, one], total + one.logprob))
        order = sorted(range(len(children)), key=lambda i: (-children[i][0], i))
        living = []
        for place, i in enumerate(order):
            _, text, total = children[i]
            is_stop = text[-1].token in request.stop_ids
            if not is_stop and length < room:
                if len(living) < width:
                    living.append((text, total))
            elif place < width:
                finish = FinishReason.STOP if is_stop else FinishReason.LENGTH
                ended = sorted([*ended, (total / length**penalty, text, total, finish)], key=lambda e: -e[0])[:most]
        if not living:
            break
        if len(ended) == most:
            reach = room if early not in (0, 1) and penalty > 0 else length
            if early == 1 or max(total for _, total in living) / reach**penalty <= ended[-1][0]:
                break
    best = [
        (tuple(one.token for one in text), total, tuple(one.shown for one in text if one.shown), finish)
        for _, text, total, finish in ended[: sampling.n]
    ]
    return best + [((), -math.inf, (), FinishReason.STOP)] * (sampling.n - len(best))


def _candidates(
    model: SimModel, init: SlotInit, output: tuple[int, ...], digests: dict[tuple[int, ...], list[int]]
) -> tuple[Candidate, ...]:
    """Of the whole vocabulary. ``digests``: of the outputs so far, by their tokens."""
    history = [*init.tokens, *output]
    own = digests[output] = list(digests[output[:-1]])
    for position, token in enumerate(history[len(own) :], len(own)):
        own.append(model.digest(token, position, lambda group, first, end: blockwise_sum(own, first, end)))
    return model.candidates(own[-1], len(history), init)
