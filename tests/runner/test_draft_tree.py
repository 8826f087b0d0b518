"""Draft trees: the tree itself, and engines whose trees have the right path anywhere among wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draft_heads import write_head
from headrace import LLM, ConfigError, EagleDecodingConfig, SamplingParams
from headrace.core.plan import SlotInit
from headrace.eval import tiny
from headrace.runner.growing import ROOT, GrowingTree
from headrace.runner.paths import DraftTree, best_path, path_rows
from headrace.sampling import CandidateFinder, SampleRows, TorchSampler

PROMPTS = [[5 + i, 6, 7, 8 + i] * (3 + 5 * i) for i in range(4)]
WRONG = (3, 4)
"""Never drawn: the requests ban them, and so may be drafted anywhere."""
KEYS = ("token_ids", "logprobs", "cumulative_logprob")


def options(index: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=40, end_id=-1, detokenize=False, seed=3, temperature=0.9 * (index % 2), logprobs=1,
        n=1 + index % 2, repetition_penalty=1.1 + 0.1 * index, embedding_bias=dict.fromkeys(WRONG, -1e4),
    )  # fmt: skip


def run(folder: Path, config: EagleDecodingConfig | None, **args: Any) -> tuple[list[Any], dict[str, int]]:
    """What every output is, to the bit, and the counters."""
    settings = {"skip_tokenizer_init": True, "num_threads": 1, "dtype": "float32", "speculative_config": config}
    with LLM(folder, **{**settings, **args}) as llm:
        requests = [llm.generate_async(prompt, options(index)) for index, prompt in enumerate(PROMPTS)]
        outputs = [one for request in requests for one in request.result(timeout=100).outputs]
        found = [tuple(getattr(one, key) for key in KEYS) for one in outputs]
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
    return found, witnesses


class Oracle:
    """In place of the head's own guesses: what will come, at a place that turns, among tokens that will not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outputs: list[Any]) -> None:
        texts = iter(outputs)
        self._texts = [
            (*prompt, *next(texts)[0]) for index, prompt in enumerate(PROMPTS) for _ in range(options(index).n)
        ]
        monkeypatch.setattr(CandidateFinder, "find", lambda finder, rows, logits: self.find(rows))

    def find(self, rows: SampleRows) -> tuple[list[list[int]], list[list[float]]]:
        tokens = []
        for row in range(len(rows)):
            text = (*rows.history(int(rows.slots[row])).tolist(), *rows.drafts_before(row, row))
            right = next(([full[len(text)]] for full in self._texts if full[: len(text)] == text < full), [])
            place = len(text) % 3
            tokens.append([*WRONG[:place], *right, *WRONG[place:]] if right else [WRONG[0]])
        # What follows a wrong draft is worth less than all that is right, and is there all the same.
        return tokens, [[-0.5, -0.6, -0.7] if len(row) == 3 else [-3.0] for row in tokens]


def config(head: Path, **changes: Any) -> EagleDecodingConfig:
    tree = {"max_draft_len": 3, "use_dynamic_tree": True, "dynamic_tree_max_topK": 3, "max_total_draft_tokens": 12}
    return EagleDecodingConfig(speculative_model=str(head), **{**tree, **changes})


@pytest.mark.parametrize(
    ("family", "args"),
    [
        ("llama", {}),
        pytest.param(
            "llama", {"cuda_graph_config": None, "kv_cache_config": {"dtype": "int8"}}, marks=pytest.mark.slow
        ),
        pytest.param("gemma3-untied-window-40", {"kv_cache_config": {"dtype": "fp8"}}, marks=pytest.mark.slow),
        pytest.param("llama4-chunk-40-odd", {"disable_overlap_scheduler": True}, marks=pytest.mark.slow),
        pytest.param("deepseek-v3", {"kv_cache_config": {"max_tokens": 256}}, marks=pytest.mark.slow),
        ("qwen3-next", {}),
        pytest.param("nemotron-h-experts", {}, marks=pytest.mark.slow),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(given) or "plain",
)
def test_whichever_path_is_right_the_output_is_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, args: dict[str, Any]
) -> None:
    with torch.no_grad():
        folder = tiny.save(tiny.make(family), tmp_path / "model")
    head = write_head(tmp_path / "head", folder)
    outputs, counts = run(folder, None, **args)
    Oracle(monkeypatch, outputs)
    drafted, tree_counts = run(folder, config(head), **args)
    assert drafted == outputs
    assert tree_counts["draft_branches"] > 100
    # Most steps give four tokens.
    assert tree_counts["drafts_accepted"] > 130
    assert tree_counts["steps"] < 0.6 * counts["steps"]


def test_the_best_drafts_are_kept_and_the_likeliest_path_comes_first() -> None:
    tree = GrowingTree(3, 6, whole=False)
    tree.add(ROOT, [1, 2, 3], [-0.5, -1.0, -3.0])
    assert tree.front(1, 2) == [0, 1]
    tree.add(0, [4, 5], [-0.4, -2.0])
    tree.add(1, [6, 7], [-0.1, -4.0])
    assert [tree.path(node) for node in tree.front(2, 2)] == [(1, 4), (2, 6)]
    # By scores: 1 -0.5, 1 4 -0.9, 2 -1.0, 2 6 -1.1, 1 5 -2.5, 3 -3.0; then there is no room.
    assert tree.tree() == DraftTree(((1, 4), (1, 5), (2, 6), (3,)))
    assert (tree.tree().shared, tree.tree().n_drafts) == ((0, 1, 0, 0), 6)


def test_a_branch_that_needs_whole_paths_costs_as_much() -> None:
    def grown(n_rows: int) -> DraftTree:
        tree = GrowingTree(2, n_rows, whole=True)
        tree.add(ROOT, [1, 2], [-0.1, -0.3])
        tree.add(0, [3, 4], [-0.1, -0.4])
        return tree.tree()

    # The first path takes a row for each draft, others one more, for the newest token.
    found = [grown(n).paths for n in (1, 2, 3, 4, 7)]
    assert found == [((1,),), ((1, 3),), ((1, 3),), ((1, 3), (2,)), ((1, 3), (1, 4), (2,))]


def test_rows_of_paths_and_the_path_that_is_right() -> None:
    paths = ((1, 2, 3), (1, 2, 4), (5,))
    own, whole = path_rows(10, paths, (0, 3, 1)), path_rows(10, paths, (0, 0, 0))
    assert [rows.tolist() for rows in own] == [[10, 11, 12, 13], [10, 11, 12, 14], [10, 15]]
    assert [rows.tolist() for rows in whole] == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19]]

    def best(after: dict[int, int]) -> int:
        return best_path(paths, own, np.array([after.get(row, -1) for row in range(20)]))

    assert best({10: 1, 11: 2, 12: 4, 14: 9}) == 1
    assert best({10: 5, 15: 7}) == 2
    # Nobody is right, or as right as the first.
    assert best({}) == best({10: 9}) == best({10: 1, 11: 9}) == 0


def bound(index: int, **sampling: Any) -> SlotInit:
    params = SamplingParams(end_id=-1, **sampling)
    return SlotInit(index, index, (1, 2, 3), 3, 0, params, 7 + index, 0, frozenset(), frozenset(), 99)


@pytest.mark.parametrize("vocab_size", [300, 20_011], ids=["small", "large"])
def test_candidates_are_the_draws_of_the_head_in_their_order(vocab_size: int) -> None:
    """The first is what the sampler draws from the same logits; without the first, the second is."""
    generator = torch.Generator().manual_seed(1)
    n, n_draft = 24, vocab_size * 3 // 4
    ids = torch.randperm(vocab_size, generator=generator)[:n_draft].sort().values
    finder, sampler = CandidateFinder(n, vocab_size, ids, 3), TorchSampler(n, vocab_size)
    for index in range(n):
        ways: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 0.7, "top_k": 9}]
        init = bound(index, repetition_penalty=1.5, **ways[index % 3])
        finder.bind(init)
        sampler.bind(init)
    logits = 4 * torch.randn(n, n_draft, generator=generator)
    rows = SampleRows.one_each(np.arange(n), np.full(n, 3), lambda slot: np.array([1, 2, 3]))
    tokens, shares = finder.find(rows, logits)
    wide = torch.full((n, vocab_size), -torch.inf)
    wide[:, ids] = logits
    drawn = np.array([sampler.sample(rows, wide).tokens])
    assert [row[0] for row in tokens] == drawn[0].tolist()
    wide[torch.arange(n), torch.from_numpy(drawn[0])] = -1e9
    second = sampler.sample(rows, wide).tokens.tolist()
    # Without the first another token is among the nine that top-k keeps.
    same = [row[1] == token for row, token in zip(tokens, second, strict=True)]
    assert all(same[0::3] + same[1::3])
    assert sum(same[2::3]) >= 6
    assert all(0 >= row[0] >= row[1] >= row[2] for row in shares)
    assert all(np.exp(row).sum() <= 1 + 1e-6 for row in shares)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamic_tree_max_topK": None}, "use_dynamic_tree needs dynamic_tree_max_topK"),
        ({"use_dynamic_tree": False}, "dynamic_tree_max_topK goes with use_dynamic_tree=True"),
        ({"max_total_draft_tokens": 40}, "max_total_draft_tokens=40: .* has 4 to 21 drafts"),
        ({"max_total_draft_tokens": 3}, "max_total_draft_tokens=3: .* has 4 to 21 drafts"),
        ({"use_rejection_sampling": True}, "use_rejection_sampling goes with chains"),
        ({"eagle3_one_model": False}, "eagle3_one_model=False goes with chains"),
    ],
)
def test_what_does_not_make_a_tree_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM("nowhere", speculative_config={**config(Path("head")).model_dump(exclude_unset=True), **changes})
