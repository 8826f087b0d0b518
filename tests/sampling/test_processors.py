"""Logits processors around a sampler: what they are called with, what they may do, and who pays for their errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sampler_contract import IMPLEMENTATIONS, NAMES, Case, run, sampling_params, slot_init

from headrace.core.errors import RequestError
from headrace.sampling import NO_TOKEN, ProcessingSampler, Sampler

V = 8


@pytest.fixture(params=NAMES)
def inner(request: pytest.FixtureRequest) -> Sampler:
    return IMPLEMENTATIONS[request.param](4, V)


def case(slot: int = 0, drafts: tuple[int, ...] = (), history: tuple[int, ...] = (0, 1, 3), **options: Any) -> Case:
    init = replace(slot_init(slot, sampling_params(**options)), request_id=40 + slot)
    logits = np.tile(np.arange(V, dtype=np.float32), (1 + len(drafts), 1))
    return Case(init, list(history), drafts, logits)


def test_called_for_every_row_with_all_that_is_before_it(inner: Sampler) -> None:
    calls = []

    def processor(req_id: int, logits: torch.Tensor, token_ids: list, stream_ptr: object, client_id: int) -> None:
        calls.append((req_id, tuple(logits.shape), token_ids, stream_ptr, client_id))

    run(ProcessingSampler(inner, None), [case(1), case(2, drafts=(5, 6), logits_processor=processor)])
    assert calls == [(102, (1, 1, V), [[0, 1, 3, *drafts]], None, 42) for drafts in ([], [5], [5, 6])]


def test_several_run_in_order_the_batched_one_last(inner: Sampler) -> None:
    def double(req_id: int, logits: torch.Tensor, *rest: object) -> None:
        logits *= 2

    def add(req_id: int, logits: torch.Tensor, *rest: object) -> None:
        logits[0, 0, 2] += 8  # doubled first 2 + 2, doubled afterwards 20

    def below(req_ids: list, logits: list[torch.Tensor], *rest: object) -> None:
        assert len(req_ids) == 1
        logits[0].clamp_(max=13.0)  # 7 doubled is 14: ties go to the lower id

    sampler = ProcessingSampler(inner, below)
    assert run(sampler, [case(logits_processor=[double, add])]).tokens.tolist() == [7]
    assert run(sampler, [case(logits_processor=[add, double])]).tokens.tolist() == [2]
    asked = {"apply_batched_logits_processor": True}
    outcome = run(sampler, [case(logits_processor=[add, double], **asked), case(1)])
    assert (outcome.tokens.tolist(), outcome.n_processed) == ([2, 7], 1)


def test_biases_and_bans_come_after(inner: Sampler) -> None:
    def flat(req_id: int, logits: torch.Tensor, *rest: object) -> None:
        logits[...] = 0.0

    options = {"logits_processor": flat, "embedding_bias": {3: 1.0, 4: 2.0}, "bad_token_ids": [[4]], "logprobs": 1}
    outcome = run(ProcessingSampler(inner, None), [case(**options)])
    assert outcome.tokens.tolist() == [3]
    assert outcome.logprobs[0].top_ids == (7,), "raw logprobs are of the model's own logits"
    options["logprobs_mode"] = "processed"
    assert run(ProcessingSampler(inner, None), [case(**options)]).logprobs[0].top_ids == (3,)


def test_an_error_hurts_its_own_row_alone(inner: Sampler) -> None:
    def fail(req_id: int, logits: torch.Tensor, *rest: object) -> None:
        logits[...] = torch.nan
        raise LookupError("no such luck")

    cases = [case(0), case(1, logits_processor=fail, logprobs=1), case(2, drafts=(7,), logprobs=0)]
    outcome = run(ProcessingSampler(inner, None), cases)
    assert outcome.tokens.tolist() == [7, NO_TOKEN, 7, 7]
    assert set(outcome.errors) == {1}
    assert "no such luck" in outcome.errors[1]
    assert "in fail" in outcome.errors[1], "the traceback"
    assert set(outcome.logprobs) == {2, 3}


def test_logits_that_a_processor_has_ruined_say_so(inner: Sampler) -> None:
    def ruin(req_id: int, logits: torch.Tensor, *rest: object) -> None:
        logits[0, 0, 3] = torch.nan

    outcome = run(ProcessingSampler(inner, None), [case(logits_processor=ruin), case(1)])
    assert outcome.errors[0].endswith("(after a logits processor)")
    assert outcome.tokens.tolist() == [NO_TOKEN, 7]


def test_a_batched_error_fails_those_it_comes_from(inner: Sampler) -> None:
    calls = []

    def picky(req_ids: list[int], logits: list, token_ids: list, stream_ptr: object, client_ids: list) -> None:
        calls.append(client_ids)
        for one, tokens in zip(logits, token_ids, strict=True):
            one[0, 0, 5] += 100
            if 2 in tokens[0]:
                raise ValueError("two is not allowed")

    asked = {"apply_batched_logits_processor": True}
    cases = [case(0, **asked), case(1, history=(0, 2, 3), **asked), case(2, **asked), case(3)]
    outcome = run(ProcessingSampler(inner, picky), cases)
    assert outcome.tokens.tolist() == [5, NO_TOKEN, 5, 7], "once each: what the failed call had done is undone"
    assert "two is not allowed" in outcome.errors[1]
    assert calls == [[40, 41, 42], [40], [41], [42]]


def test_nobody_to_ask_is_an_error_of_the_request(inner: Sampler) -> None:
    sampler = ProcessingSampler(inner, None)
    with pytest.raises(RequestError, match="batched_logits_processor"):
        sampler.bind(case(apply_batched_logits_processor=True).init)


def test_a_slot_forgets_its_processor(inner: Sampler) -> None:
    def seven(req_id: int, logits: torch.Tensor, *rest: object) -> None:
        logits[0, 0, 1] = 100

    sampler = ProcessingSampler(inner, None)
    assert run(sampler, [case(logits_processor=seven)]).tokens.tolist() == [1]
    assert run(sampler, [case()]).tokens.tolist() == [7]
