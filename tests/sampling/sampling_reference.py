"""``docs/sampling.md`` in plain numpy, row by row, sharing nothing with the package: what every sampler must equal."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from headrace.core.plan import SlotInit, TokenLogprobs
from headrace.core.sampling_params import SamplingParams

F32, F64, I64 = np.float32, np.float64, np.int64


def exp(x: np.ndarray) -> np.ndarray:
    x = np.maximum(x, F32(-64))
    k = np.floor(x * F32(1.44269504088896341) + F32(0.5))
    r = (x - k * F32(0.693359375)) - k * F32(-2.12194440e-4)
    p = np.full_like(x, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F32(c)
    p = ((p * r) * r + r) + F32(1)
    return p * ((k.astype(np.int32) + 127) << 23).view(F32)


def mass(x: np.ndarray) -> np.ndarray:
    return (exp(x) * F32(2**40)).astype(I64)


def log(x: float) -> float:
    (bits,) = np.array([x], F64).view(I64).tolist()
    hi, lo = bits >> 32, bits & 0xFFFFFFFF
    m = hi & 0xFFFFF
    i = (m + 0x95F64) & 0x100000
    k = float((hi >> 20) - 1023 + (i >> 20))
    f = float(np.array([((m | (i ^ 0x3FF00000)) << 32) | lo], I64).view(F64)[0]) - 1.0
    s = f / (f + 2.0)
    z = s * s
    w = z * z
    t1 = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01))
    t2 = z * (
        6.666666666666735130e-01
        + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01))
    )
    h = (f * 0.5) * f
    return k * 6.93147180369123816490e-01 - ((h - (s * (h + (t1 + t2)) + k * 1.90821492927058770002e-10)) - f)


def noise(seed: int, output_index: int, position: int, token: int) -> int:
    c = [token >> 2, position, output_index, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[token & 3]


@dataclass
class Row:
    """The result of one row; ``token`` None: it failed."""

    token: int | None
    logprobs: TokenLogprobs | None = None


def sample(init: SlotInit, history: list[int], logits: np.ndarray, allowed: frozenset[int] | None = None) -> Row:
    """``history``: confirmed tokens, then the drafts before this row. ``allowed``: the tokens of its mask."""
    sampling, position = init.sampling, len(history)
    x = _change(init, history, logits.copy())
    if allowed is not None:
        x[[token for token in range(len(x)) if token not in allowed]] = -np.inf
    if not math.isfinite(top := float(np.max(x))):
        return Row(None)
    greedy = sampling.is_greedy
    temperature = 1.0 if greedy or sampling.temperature is None else sampling.temperature
    with np.errstate(over="ignore"):
        y = (x - F32(top)) / np.maximum(F32(temperature), np.finfo(F32).tiny)
    draws = not greedy and not init.n_candidates
    order = np.lexsort((np.arange(len(y)), -y))
    kept = [token for token in order.tolist() if y[token] > -np.inf]
    masses = mass(y)
    if draws:
        kept = _filter(sampling, kept, masses, top_p(init, history))
    token = int(np.flatnonzero(x == top)[0])
    if draws:
        waits = [
            (-log((2 * noise(init.seed, init.output_index, position, t) + 1) * 2.0**-33) / float(masses[t]), t)
            for t in kept
            if masses[t] > 0
        ]
        token = min(waits)[1]
    if init.n_candidates:
        n_top = max(init.n_candidates, sampling.logprobs or 0)
        return Row(token, _entry(y, 0.0, int(masses.sum()), kept, token, n_top))
    if sampling.logprobs is None:
        return Row(token)
    if sampling.logprobs_mode == "raw":
        if not math.isfinite(float(np.max(logits))):
            return Row(None)
        return Row(token, raw_logprobs(logits, token, sampling.logprobs))
    total = int(masses[kept].sum())
    return Row(token, _entry(y, 0.0, total, kept, token, sampling.logprobs))


def raw_logprobs(logits: np.ndarray, token: int, n_top: int) -> TokenLogprobs:
    top = np.max(logits)
    order = np.lexsort((np.arange(len(logits)), -logits)).tolist()
    return _entry(logits, float(top), int(mass(logits - top).sum()), order, token, n_top)


def _entry(x: np.ndarray, top: float, total: int, order: list[int], token: int, n_top: int) -> TokenLogprobs:
    def logprob(t: int) -> float:
        return (float(x[t]) - top) - log(float(total) * 2.0**-40)

    best = [t for t in order if x[t] > -np.inf][:n_top]
    return TokenLogprobs(token, logprob(token), order.index(token) + 1, tuple(best), tuple(map(logprob, best)))


def _change(init: SlotInit, history: list[int], x: np.ndarray) -> np.ndarray:
    sampling = init.sampling
    for token, bias in (sampling.embedding_bias or {}).items():
        x[token] = x[token] + F32(bias)
    repetition = F32(1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty)
    presence, frequency = F32(sampling.presence_penalty or 0.0), F32(sampling.frequency_penalty or 0.0)
    output = Counter(history[init.n_prompt :])
    for token in set(history):
        if token < len(x):
            x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
            if output[token]:
                x[token] = x[token] - presence
            x[token] = x[token] - frequency * F32(output[token])
    if len(history) - init.n_prompt < (sampling.min_tokens or 0):
        x[[token for token in init.stop_ids if token < len(x)]] = -np.inf
    for *rest, last in sampling.bad_token_ids or ():
        if not rest or history[-len(rest) :] == rest:
            x[last] = -np.inf
    n = sampling.no_repeat_ngram_size
    if n:
        grams = {tuple(history[i : i + n]) for i in range(len(history) - n + 1)}
        for token in range(len(x)):
            if len(history) >= n - 1 and (*history[len(history) - n + 1 :], token) in grams:
                x[token] = -np.inf
    return x


def top_p(init: SlotInit, history: list[int]) -> float:
    sampling = init.sampling
    first = p = 1.0 if sampling.top_p is None else sampling.top_p
    if sampling.top_p_decay is not None or sampling.top_p_min is not None:
        for token in history[init.n_prompt :]:
            decayed = p * (1.0 if sampling.top_p_decay is None else sampling.top_p_decay)
            p = first if token == sampling.top_p_reset_ids else max(decayed, sampling.top_p_min or 0.0)
    return p


def _filter(sampling: SamplingParams, kept: list[int], masses: np.ndarray, p: float) -> list[int]:
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    if p < 1.0:
        needed = max(1, int(float(masses[kept].sum()) * p))
        before = np.cumsum(masses[kept]) - masses[kept]
        kept = [token for token, sum_before in zip(kept, before, strict=True) if sum_before < needed]
    if sampling.min_p:
        kept = [token for token in kept if masses[token] >= int(sampling.min_p * 2.0**40)]
    return kept
