"""Whether a model gives here what its reference gives: logits in fp32, greedy tokens, and the KL between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headrace.core.pooling import PoolingParams
from headrace.core.sampling_params import SamplingParams
from headrace.layers.base import BuildContext
from headrace.models.base import Model
from headrace.models.registry import build_model
from headrace.ops.table import select_ops
from headrace.weights.checkpoint import open_checkpoint

from .kl import kl
from .references import rows
from .text_model import MODES, TextModel

if TYPE_CHECKING:
    from headrace.llm import LLM

MAX_TOKENS = 8
TOLERANCE = 1e-3
"""On prompt logprobs. Sharp attention blows fp32 noise up to 3e-4, in the reference as much as here."""
_ANY_LOGIT = 10.0
"""Times the tolerance: what any logit of any row may be off, however unlikely its token."""
_MAX_KL = 1e-5


@dataclass(frozen=True, slots=True)
class Parity:
    """What a comparison found. Errors are the largest difference of a number, over all rows of all prompts."""

    name: str
    n_rows: int
    logits_error: float
    logprob_error: float
    """Of the prompt logprobs that the engine gave; of labels; of scores, relative to their size where it is above 1."""
    mean_kl: float
    """KL(reference || headrace) in nats, of rows."""
    max_kl: float
    n_greedy: int = 0
    """Tokens that the engine has generated; none of a model that only encodes."""
    same_greedy: int = 0
    """Those of them that the reference finds likeliest."""

    def holds(self, tolerance: float = TOLERANCE) -> bool:
        near = self.logprob_error < tolerance and self.logits_error < _ANY_LOGIT * tolerance and self.max_kl < _MAX_KL
        return near and self.same_greedy == self.n_greedy


def measure(
    name: str, folder: Path, reference: Any, prompts: Sequence[list[int]], max_tokens: int = MAX_TOKENS, **args: Any
) -> Parity:
    """Runs the prompts through the engine as a user would, all at once and cut into chunks, and through ``reference``.

    The engine's greedy tokens are looked at in one pass of the reference over prompt and output, where every one must
    be the likeliest after those before it; the logits of all those rows are compared too.

    Args:
        reference: of ``references`` or ``tiny``.
        args: more of ``LLM``.
    """
    from headrace.llm import LLM

    plan = _without_weights(folder)
    longest = max(map(len, prompts)) + (max_tokens if plan.pooling.generates else 0)
    n_rows = longest if plan.reads_whole_prompts else 64
    settings = {"dtype": "float32", "skip_tokenizer_init": True, "max_num_tokens": n_rows, "max_batch_size": 8, **args}
    with LLM(str(folder), **settings, max_seq_len=longest) as llm:
        if not plan.pooling.generates:
            return _encoded(name, llm, reference, prompts)
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=0, end_id=-1, detokenize=False)
        outputs = [one.outputs[0] for one in llm.generate(list(prompts), params, use_tqdm=False)]
    model = TextModel(folder, MODES["float32"], longest)
    found = _Rows()
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = [*prompt, *output.token_ids]
        wanted = rows(reference, tokens)
        found.add(wanted, torch.cat(list(model.logits(tokens))))
        given = [entry[token].logprob for token, entry in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
        found.add_prompt(wanted, prompt, given)
        found.add_greedy(wanted[len(prompt) - 1 : -1], output.token_ids)
    return found.parity(name)


def _without_weights(folder: Path) -> Model:
    checkpoint = open_checkpoint(folder)
    try:
        return build_model(checkpoint.config(), BuildContext(select_ops("cpu", torch.float32)))
    finally:
        checkpoint.close()


def _encoded(name: str, llm: LLM, reference: Any, prompts: Sequence[list[int]]) -> Parity:
    """Raw scores: of every token from a reward model, of the pooled one from a model with labels."""
    labels = llm.effective_config["pooling"]["gives"] == "classification"
    params = PoolingParams(use_activation=False, pooling_type=None if labels else "all")
    found = _Rows()
    for prompt, output in zip(prompts, llm.encode(list(prompts), params, use_tqdm=False), strict=True):
        got = torch.from_numpy(output.data.copy())
        found.add_labels(rows(reference, prompt), got.reshape(-1, got.shape[-1]))
    return found.parity(name)


class _Rows:
    """Adds findings up."""

    def __init__(self) -> None:
        self._logits = self._logprobs = 0.0
        self._kls: list[torch.Tensor] = []
        self._n_greedy = self._same = 0

    def add(self, wanted: torch.Tensor, got: torch.Tensor) -> None:
        """Logits [T, width] of both."""
        if wanted.shape != got.shape:
            raise ValueError(f"the reference gives {list(wanted.shape)}, headrace {list(got.shape)}")
        self._logits = _worse(self._logits, wanted - got)
        self._kls.append(kl(wanted.double().log_softmax(-1), got.double().log_softmax(-1)))

    def add_labels(self, wanted: torch.Tensor, got: torch.Tensor) -> None:
        """The same of labels, or of a score, which has no distribution."""
        self.add(wanted, got)
        is_score = wanted.shape[1] == 1
        difference = wanted - got if is_score else wanted.log_softmax(-1) - got.log_softmax(-1)
        self._logprobs = _worse(self._logprobs, difference / wanted.abs().clamp(min=1.0) if is_score else difference)

    def add_prompt(self, wanted: torch.Tensor, prompt: list[int], given: list[float]) -> None:
        """``given``: the engine's logprobs of the prompt's tokens but the first."""
        if given:
            expected = wanted[: len(given)].log_softmax(-1)[range(len(given)), prompt[1:]]
            self._logprobs = _worse(self._logprobs, expected - torch.tensor(given))

    def add_greedy(self, wanted: torch.Tensor, token_ids: Sequence[int]) -> None:
        self._n_greedy += len(token_ids)
        self._same += int((wanted.argmax(1) == torch.tensor(token_ids)).sum())

    def parity(self, name: str) -> Parity:
        kls = torch.cat(self._kls)
        worst, mean = kls.max().item(), kls.mean().item()
        return Parity(name, len(kls), self._logits, self._logprobs, mean, worst, self._n_greedy, self._same)


def _worse(worst: float, difference: torch.Tensor) -> float:
    """NaN counts as the worst there is."""
    return max(worst, difference.abs().nan_to_num(nan=float("inf")).max().item())
