"""A draft head with a cache of its own: what it drafts against plain computations, and what becomes of its blocks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draft_heads import Seen, error, write_head
from headrace import LLM, EagleDecodingConfig, KvCacheConfig, SamplingParams
from headrace.cache.arena import arena_for_tokens
from headrace.cache.groups import group_layers
from headrace.cache.manager import CacheManager, CacheOptions
from headrace.cache.specs import FullKV
from headrace.core.plan import BLOCK_TOKENS, SlotInit
from headrace.eval import tiny
from headrace.runner.draft_cache import OwnKeys
from headrace.runner.slots import SlotTable
from headrace.runner.tiers import BlockMover

PROMPT = list(range(3, 163))
PARAMS = SamplingParams(max_tokens=12, end_id=-1, detokenize=False, logprobs=1)
N_SLOTS = 8
TIGHT = KvCacheConfig(max_tokens=288)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():
        return tiny.save(tiny.make("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[OwnKeys]:
    """Those that are built from now on."""
    built: list[OwnKeys] = []
    begin = OwnKeys.__init__

    def noting(keys: OwnKeys, *args: Any) -> None:
        built.append(keys)
        begin(keys, *args)

    monkeypatch.setattr(OwnKeys, "__init__", noting)
    return built


def start(folder: Path, head: Path, **args: Any) -> LLM:
    config = EagleDecodingConfig(max_draft_len=3, speculative_model=str(head), eagle3_one_model=False)
    defaults = {"skip_tokenizer_init": True, "num_threads": 1, "dtype": "float32", "speculative_config": config}
    return LLM(folder, max_batch_size=N_SLOTS, **defaults | args)


def ask(llm: LLM, *prompts: list[int], **changes: Any) -> list[Any]:
    requests = [llm.generate_async(prompt, PARAMS.model_copy(update=changes)) for prompt in prompts]
    outputs = [one for request in requests for one in request.result(timeout=60).outputs]
    return [(one.token_ids, one.logprobs) for one in outputs]


def test_a_prefix_is_found_in_the_heads_own_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[OwnKeys]
) -> None:
    head, seen = write_head(tmp_path / "head", folder), Seen(monkeypatch)
    with start(folder, head) as llm:
        first, again = ask(llm, PROMPT), ask(llm, PROMPT)
        witnesses = llm.get_stats()[-1]["witnesses"]
    # Nothing in the blocks is another's, as it is the same text.
    assert error(folder, head, seen.draws) < 5e-4
    assert witnesses["draft_cached_tokens"] == witnesses["cached_tokens.device"] >= 128
    assert witnesses["draft_skipped_tokens"] == 0 < witnesses["draft_cache_blocks"]
    engines[0].cache.check_integrity()
    with start(folder, head, speculative_config=None) as plain:
        assert first == again == ask(plain, PROMPT)


def test_what_the_head_has_lost_is_as_though_it_had_not_been(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[OwnKeys]
) -> None:
    """The target finds 159 tokens in its cache, and the head none."""
    head, seen = write_head(tmp_path / "head", folder), Seen(monkeypatch)
    with start(folder, head) as llm:
        first = ask(llm, PROMPT)
        # The slot is let go when the next step is planned.
        ask(llm, PROMPT[::-1])
        engines[0].cache.evict_all()
        seen.draws.clear()
        again = ask(llm, PROMPT)
        witnesses = llm.get_stats()[-1]["witnesses"]
    skipped = witnesses["draft_skipped_tokens"]
    assert skipped == witnesses["cached_tokens.device"] >= 128
    assert error(folder, head, seen.draws, skipped=skipped) < 5e-4 < error(folder, head, seen.draws)
    assert first == again
    engines[0].cache.check_integrity()


@pytest.mark.parametrize(
    ("variant", "args"),
    [
        ("llama", {"kv_cache_config": TIGHT, "max_num_tokens": 24}),
        pytest.param("nemotron-h-experts", {"disable_overlap_scheduler": True}, marks=pytest.mark.slow),
        pytest.param("gemma3-untied-window-40", {"kv_cache_config": TIGHT}, marks=pytest.mark.slow),
        pytest.param("deepseek-v3", {"kv_cache_config": KvCacheConfig(dtype="int8")}, marks=pytest.mark.slow),
    ],
)
def test_blocks_come_back_whatever_becomes_of_sequences(
    folder: Path, tmp_path: Path, engines: list[OwnKeys], variant: str, args: dict[str, Any]
) -> None:
    """Outputs that share a prompt, preemption, beams and cancelled requests: none moves an output or keeps a block."""
    with torch.no_grad():
        model = folder if variant == "llama" else tiny.save(tiny.make(variant), tmp_path / variant)
    head = write_head(tmp_path / "head", model)
    prompts = [[5 + i, 6, 7, 8 + i] * (3 + 5 * i) for i in range(5)]
    drawn = {"n": 2, "temperature": 0.9, "seed": 3}
    with start(model, head, max_beam_width=3, **args) as llm:
        beams = llm.generate_async(prompts[1], SamplingParams(max_tokens=9, end_id=-1, use_beam_search=True, n=3))
        gone = llm.generate_async(prompts[4], PARAMS)
        outputs = ask(llm, *prompts, **drawn)
        gone.abort()
        found = [one.token_ids for one in beams.result(timeout=60).outputs]
        ask(llm, [3])
        witnesses = llm.get_stats()[-1]["witnesses"]
        llm.check_integrity()
    (keys,) = engines
    assert witnesses["drafts_accepted"] > 0
    assert witnesses["draft_cached_tokens"] > 0
    assert (witnesses["preemptions"] > 0) == (args.get("kv_cache_config") is TIGHT)
    for slot in range(N_SLOTS):
        keys.release(slot)
    keys.cache.check_integrity()
    assert keys.cache.n_leases == 0
    with start(model, head, max_beam_width=3, **args, speculative_config=None) as plain:
        assert outputs == ask(plain, *prompts, **drawn)
        (wanted,) = plain.generate([prompts[1]], SamplingParams(max_tokens=9, end_id=-1, use_beam_search=True, n=3))
        assert found == [one.token_ids for one in wanted.outputs]


def keys_of(n_blocks: int, tokens: list[int]) -> OwnKeys:
    """Two slots over a cache of so many blocks, which hold ``tokens``."""
    groups = group_layers([FullKV(1, 8, 4)])
    layout = arena_for_tokens(groups, n_blocks * BLOCK_TOKENS)
    slots, tables = (SlotTable(2, 256, 4, 1, BLOCK_TOKENS) for _ in range(2))
    view = torch.zeros(layout.n_blocks(0), 1, 8)
    keys = OwnKeys(CacheManager(groups, layout, CacheOptions()), groups, BlockMover([view]), slots, tables, view.device)
    for slot in range(2):
        slots.bind(init_of(slot, tokens))
        keys.bind(init_of(slot, tokens))
    return keys


def init_of(slot: int, tokens: list[int], computed: int = 0, salt: str | None = None) -> SlotInit:
    options = (SamplingParams(), 1, 0, frozenset(), frozenset(), 256)
    return SlotInit(slot, slot, tuple(tokens), len(tokens), computed, *options, identity=salt)


def test_rows_for_which_there_is_no_block_are_left_out() -> None:
    keys = keys_of(4, list(range(160)))
    n_blocks = keys.cache.layout.n_blocks(0) - 1

    def read(slot: int, first: int, last: int) -> bool:
        slots, starts, ends = (np.array([value]) for value in (slot, first, last))
        if not keys.make_room(slots, starts, ends)[0]:
            return False
        batch, positions = keys.batch(slots, starts, ends - starts)
        assert positions.tolist() == list(range(first, last))
        assert batch.positions.tolist() == list(range(first - skipped[slot], last - skipped[slot]))
        keys.keep(slots, ends)
        keys.cache.check_integrity()
        return True

    skipped, half = [0, 0], (n_blocks - 1) * BLOCK_TOKENS
    assert read(0, 0, half)
    assert read(1, 0, 20)
    assert not read(1, 20, 40)
    keys.release(0)
    # Twenty tokens have gone by unread; what was read of others has made room.
    skipped[1] = 20
    assert read(1, 40, 70)
    assert read(1, 70, 100)
    # Its tokens are not those of the prefix of a text any more.
    lease = keys._leases[1]
    assert lease is not None
    assert lease.n_indexed == 0
    counters: Counter[str] = Counter()
    keys.count(counters)
    assert counters["draft_skipped_tokens"] == 20


def test_salts_share_nothing() -> None:
    keys = keys_of(8, list(range(64)))
    keys.make_room(np.array([0]), np.array([0]), np.array([63]))
    keys.keep(np.array([0]), np.array([63]))
    for salt, n_found in ((None, 32), ("salt:a", 0)):
        keys.bind(init_of(1, list(range(64)), 40, salt))
        counters: Counter[str] = Counter()
        keys.count(counters)
        assert counters["draft_cached_tokens"] == n_found
