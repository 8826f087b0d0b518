"""What a way to draft brings: tokens a step, and the speed of one stream, beside the plain run of the same prompts.

    python bench/speculation.py smollm2 --head FOLDER

Prompts are chat questions, answered greedily and at temperature 0.7; with ``--task quote`` they ask for a text to be
summarised and quoted. The two engines take turns in one process; outputs
must be equal. ``--rows`` times the step itself instead: how much longer it takes with 2 to 9 rows than with 1.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from headrace import (
    LLM,
    EagleDecodingConfig,
    NGramDecodingConfig,
    SADecodingConfig,
    SamplingParams,
    UserProvidedDecodingConfig,
)

PROMPTS = [
    "What should I see in Lisbon if I have only one day?",
    "Explain how a refrigerator keeps food cold.",
    "Write a thank-you note to a neighbour who watered my plants.",
    "Why do leaves change colour in autumn?",
    "Give me three ideas for a rainy afternoon with two small children.",
    "What is the difference between a virus and a bacterium?",
    "How do I politely decline an invitation to a party?",
    "Summarise the story of Romeo and Juliet in a few sentences.",
    "I keep forgetting where I put my keys. What can I do?",
    "Describe the taste of a ripe mango to somebody who has never had one.",
    "Which is better for a small flat, a cat or a dog?",
    "Write a Python function that counts the vowels of a string.",
]
"""None of them is in the data that the head was trained on."""

PASSAGES = [
    "The harbour of Marlow lies at the mouth of the river Ash, where two old breakwaters keep the swell out."
    " Until 1911 the harbour lived on herring: in a good autumn ninety boats went out every night, and the"
    " curing houses on the north quay worked until dawn. When the herring stayed away the curing houses were"
    " turned into workshops, and the town learned to build small engines. Today the north quay has a market on"
    " Saturdays, and the last curing house is a museum in which the smell of smoke has never quite gone.",
    "A beehive keeps its brood nest at about thirty-five degrees, in winter and in summer alike. In winter the"
    " bees form a cluster and shiver with their flight muscles, and those on the outside change places with"
    " those on the inside. In summer some of them carry water and spread it over the combs, while others stand"
    " at the entrance and fan with their wings, so that the water evaporates and cools the hive. No bee gives"
    " an order: each of them answers to the warmth that it feels.",
    "The committee met on 4 May and agreed on three things. First, the roof of the sports hall will be"
    " repaired before the autumn, at a cost of no more than 80,000 euros. Second, the library will open on"
    " Sundays from ten to two for a trial period of six months, after which the number of visitors will be"
    " counted. Third, the old fire engine will not be sold: it will stand in the yard of the fire station,"
    " where visitors can look at it during the summer festival.",
]
"""For the task of quoting: the answer repeats most of the prompt."""
_QUOTE = "Copy the following text word for word, then summarise it in one sentence.\n\n{}"
_QUOTE_FROM = "Here is a text:\n\n{}\n\nSay what it is about, and quote all of its sentences in double quotes."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--head", help="an EAGLE-3 head; without one, n-grams and suffixes are measured alone")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--draft-len", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--task", choices=("chat", "quote"), default="chat", help="quote: summarise and quote a text")
    parser.add_argument("--ngram", type=int, default=2, help="max_matching_ngram_size")
    parser.add_argument("--greedy", action="store_true", help="temperature 0 alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tree", type=int, nargs=2, metavar=("WIDTH", "DRAFTS"), help="of dynamic trees, with --head")
    parser.add_argument("--only", nargs="+", choices=("eagle3", "two-model", "tree", "ngram", "suffix"))
    parser.add_argument("--rows", action="store_true", help="the cost of a step by its rows")
    args = parser.parse_args()
    if args.rows:
        _rows(args)
        return
    ways: dict[str, Any] = {"plain": None}
    if args.head:
        head = {"max_draft_len": args.draft_len, "speculative_model": args.head}
        ways["eagle3"] = EagleDecodingConfig(**head)
        ways["two-model"] = EagleDecodingConfig(**head, eagle3_one_model=False)
    if args.head and args.tree:
        width, total = args.tree
        ways["tree"] = EagleDecodingConfig(
            max_draft_len=args.draft_len, speculative_model=args.head, use_dynamic_tree=True,
            dynamic_tree_max_topK=width, max_total_draft_tokens=total,
        )  # fmt: skip
    ways["ngram"] = NGramDecodingConfig(max_draft_len=args.draft_len, max_matching_ngram_size=args.ngram)
    ways["suffix"] = SADecodingConfig(max_draft_len=args.draft_len)
    if args.only:
        ways = {name: way for name, way in ways.items() if name in ("plain", *args.only)}
    print(f"{'way':9} {'temperature':>11} {'tokens/s':>9} {'of plain':>8} {'tokens/step':>11} {'output':>8}")
    for temperature in (0.0,) if args.greedy else (0.0, 0.7):
        plain: tuple[float, list[Any]] | None = None
        for name, config in ways.items():
            speed, per_step, outputs = _measure(args, config, temperature)
            plain = plain or (speed, outputs)
            same = "equal" if outputs == plain[1] else "DIFFERS"
            print(
                f"{name:9} {temperature:11} {speed:9.1f} {speed / plain[0]:8.2f} {per_step:11.2f} {same:>8}", flush=True
            )


def _texts(args: argparse.Namespace) -> list[str]:
    if args.task == "chat":
        return PROMPTS[: args.prompts]
    return [ask.format(text) for ask in (_QUOTE, _QUOTE_FROM) for text in PASSAGES][: args.prompts]


def _engine(args: argparse.Namespace, config: Any, **more: Any) -> LLM:
    return LLM(
        args.model, dtype=args.dtype, num_threads=args.threads, max_seq_len=512, max_batch_size=1,
        speculative_config=config, **more,
    )  # fmt: skip


def _measure(args: argparse.Namespace, config: Any, temperature: float) -> tuple[float, float, list[Any]]:
    """Tokens a second while decoding, tokens a step, and the output token ids."""
    with _engine(args, config) as llm:
        assert llm.tokenizer is not None
        prompts = [llm.tokenizer.chat([{"role": "user", "content": text}]) for text in _texts(args)]
        params = SamplingParams(max_tokens=args.tokens, temperature=temperature, seed=5, detokenize=False)
        llm.generate(prompts[0], SamplingParams(max_tokens=8, detokenize=False))
        before, outputs, seconds, n_tokens = llm.get_stats()[-1]["witnesses"], [], 0.0, 0
        for prompt in prompts:
            request = llm.generate_async(prompt, params, streaming=True)
            stream = iter(request)
            next(stream)
            first, begin = len(request.outputs[0].token_ids), time.perf_counter()
            for _ in stream:
                pass
            seconds += time.perf_counter() - begin
            n_tokens += len(request.outputs[0].token_ids) - first
            outputs.append(list(request.outputs[0].token_ids))
        after = llm.get_stats()[-1]["witnesses"]
        steps = after["steps"] - before["steps"] - len(prompts)
    return n_tokens / seconds, n_tokens / steps, outputs


def _rows(args: argparse.Namespace) -> None:
    """A drafter whose drafts are never right: every step has 1 + n rows and gives one token."""
    print(f"{'rows':>4} {'ms a step':>9} {'of one row':>10}")
    one = 0.0
    for n in (0, 1, 2, 3, 4, 6, 8):
        config = UserProvidedDecodingConfig(max_draft_len=n, drafter=lambda tokens, limit: [3] * limit) if n else None
        speed, _, _ = _measure(args, config, 0.0)
        one = one or 1e3 / speed
        print(f"{1 + n:4} {1e3 / speed:9.2f} {1e3 / speed / one:10.2f}", flush=True)


if __name__ == "__main__":
    main()
