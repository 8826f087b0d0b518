"""The same through the public API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import Output

from headrace import LLM, SamplingParams
from headrace.engine.results import CompletionOutput


class PublicRun:
    """``LLM(model=folder).generate``: everything a user's call goes through, chunked prefill and overlap included."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Output]:
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=0, ignore_eos=True, detokenize=False)
        llm = LLM(
            model=str(self._folder), dtype="float32", skip_tokenizer_init=True, max_num_tokens=64, max_batch_size=8,
            num_threads=1,
        )  # fmt: skip
        try:
            outputs = llm.generate([list(prompt) for prompt in prompts], params, use_tqdm=False)
            assert llm.get_stats()[-1]["witnesses"]["chunks"] > 0
        finally:
            llm.shutdown()
        return [self._output(prompt, output.outputs[0]) for prompt, output in zip(prompts, outputs, strict=True)]

    @staticmethod
    def _output(prompt: Sequence[int], completion: CompletionOutput) -> Output:
        entries = zip(prompt[1:], completion.prompt_logprobs[1:], strict=True)
        return Output(tuple(entry[token].logprob for token, entry in entries), tuple(completion.token_ids))
