"""What every sampler must do: bit for bit what the definition says, for any options, in any batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import sampling_reference as reference
import torch
from hypothesis import given, settings
from sampler_contract import IMPLEMENTATIONS, NAMES, VOCAB, Case, batch, one_row, run, sampling_params, slot_init

from headrace.core.errors import EngineError, RequestError
from headrace.sampling import NO_TOKEN, RowMasks, Sampler, SampleRows

Factory = Callable[[int, int], Sampler]


@pytest.fixture(params=NAMES, scope="module")
def make(request: pytest.FixtureRequest) -> Factory:
    return IMPLEMENTATIONS[request.param]


@settings(max_examples=150, deadline=None)
@given(cases=batch())
def test_equals_the_definition(make: Factory, cases: list[Case]) -> None:
    outcome = run(make(4, VOCAB), cases)
    row = 0
    for case in cases:
        for i, logits in enumerate(case.logits):
            allowed = case.allowed and case.allowed[i]
            expected = reference.sample(case.init, case.history + list(case.drafts[:i]), logits, allowed)
            got = None if outcome.tokens[row] == NO_TOKEN else int(outcome.tokens[row])
            assert got == expected.token
            assert (row in outcome.errors) == (expected.token is None)
            assert outcome.logprobs.get(row) == expected.logprobs
            row += 1
    assert len(outcome.tokens) == row


@settings(max_examples=60, deadline=None)
@given(cases=batch())
def test_a_row_does_not_depend_on_the_batch(make: Factory, cases: list[Case]) -> None:
    together = run(make(4, VOCAB), cases)
    row = 0
    for case in cases:
        alone = run(make(4, VOCAB), [case])
        n = len(case.logits)
        assert together.tokens[row : row + n].tolist() == alone.tokens.tolist()
        for i in range(n):
            assert together.logprobs.get(row + i) == alone.logprobs.get(i)
            assert together.errors.get(row + i) == alone.errors.get(i)
        row += n


@pytest.mark.parametrize("scale", [0.02, 1.0, 4.0])
def test_large_vocabularies_alone_and_in_batches(make: Factory, scale: float) -> None:
    """Beyond the sizes that are sorted whole; ties at every cut; more rows than are looked at together."""
    vocab_size = 9001
    options = [
        {"temperature": 0.8},
        {"top_k": 40},
        {"top_p": 0.9, "temperature": 1.5},
        {"top_k": 600, "top_p": 0.5},
        {"min_p": 0.1, "temperature": 1.0},
        {"top_p": 0.9999},
        {},
    ] * 6
    generator = np.random.default_rng(4)
    logits = np.round(generator.normal(0, scale, (len(options), vocab_size)), 1).astype(np.float32)
    sampler = make(len(options), vocab_size)
    cases = [
        Case(
            slot_init(slot, sampling_params(**option, logprobs=3, logprobs_mode=("raw", "processed")[slot % 2])),
            [1, 2, 3],
            (),
            logits[slot : slot + 1],
        )
        for slot, option in enumerate(options)
    ]
    outcome = run(sampler, cases)
    for row, case in enumerate(cases):
        if row < 7:  # the reference is slow
            expected = reference.sample(case.init, case.history, case.logits[0])
            assert (outcome.tokens[row], outcome.logprobs[row]) == (expected.token, expected.logprobs)
        alone = run(sampler, [case])
        assert (outcome.tokens[row], outcome.logprobs[row]) == (alone.tokens[0], alone.logprobs[0])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.2},
        {"top_k": 6, "top_p": 0.9, "temperature": 1.5},
    ],
)
def test_draws_follow_the_probabilities(make: Factory, options: dict) -> None:
    """Chi-square over many positions against softmax probabilities, the filters written once more in float64."""
    logits = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0])
    p = np.exp(logits / options.get("temperature", 1.0))
    p[options.get("top_k", 8) :] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= options.get("top_p", 1.0)] = 0
    p[p < options.get("min_p", 0.0) * p.max()] = 0
    p /= p.sum()
    n = 20_000
    sampler = make(1, 8)
    sampler.bind(slot_init(0, sampling_params(**options), seed=11))
    rows = SampleRows.one_each(np.zeros(n, np.int64), np.arange(n), lambda slot: np.zeros(0, np.int32))
    outcome = sampler.sample(rows, torch.from_numpy(np.tile(logits.astype(np.float32), (n, 1))))
    counts = np.bincount(outcome.tokens, minlength=8)
    assert counts[p == 0].sum() == 0
    kept = p > 0
    chi_square = (((counts - n * p) ** 2)[kept] / (n * p)[kept]).sum()
    assert chi_square < 29.9, "7 degrees of freedom at most, p = 1e-4"


def test_seeds_outputs_and_positions_draw_apart(make: Factory) -> None:
    """Equal streams agree; streams that differ in one word agree as often as chance has it."""

    def tokens(seed: int, output_index: int, first: int) -> np.ndarray:
        sampler = make(1, 16)
        sampler.bind(slot_init(0, sampling_params(temperature=1.0), seed=seed, output_index=output_index))
        rows = SampleRows.one_each(np.zeros(4000, np.int64), np.arange(first, first + 4000), lambda slot: np.zeros(0))
        return sampler.sample(rows, torch.zeros(4000, 16)).tokens

    base = tokens(9, 0, 0)
    assert (base == tokens(9, 0, 0)).all()
    assert (base[100:] == tokens(9, 0, 100)[:-100]).all(), "a stream is indexed by position, not by call"
    for other in (tokens(10, 0, 0), tokens(9 + (1 << 40), 0, 0), tokens(9, 1, 0), tokens(9, 0, 1)):
        assert abs((base == other).mean() - 1 / 16) < 4.5 * (1 / 16 * 15 / 16 / 4000) ** 0.5


# Each option by itself, in numbers that can be read.


def token_of(make: Factory, logits: list[float], history: list[int] | None = None, n_prompt: int = 3, **options) -> int:
    outcome = run(make(1, len(logits)), [one_row(sampling_params(**options), logits, history, n_prompt=n_prompt)])
    assert not outcome.errors
    return int(outcome.tokens[0])


def test_greedy_takes_the_lowest_id_of_equals(make: Factory) -> None:
    assert token_of(make, [0.0, 5.0, 5.0, 1.0]) == 1


def test_bias_may_raise_and_forbid(make: Factory) -> None:
    assert token_of(make, [0.0, 5.0, 4.0, 1.0], embedding_bias={2: 1.5}) == 2
    assert token_of(make, [0.0, 5.0, 4.0, 1.0], embedding_bias={1: -np.inf}) == 2


def test_repetition_counts_prompt_and_output(make: Factory) -> None:
    logits = [1.0, 5.0, 4.9, 4.8]
    assert token_of(make, logits, [1], n_prompt=1, repetition_penalty=1.5) == 2
    assert token_of(make, logits, [1, 2], n_prompt=1, repetition_penalty=1.5) == 3
    assert token_of(make, [-1.0, -2.0, -1.1], [0], n_prompt=1, repetition_penalty=1.5) == 2, "negative: multiplied"


def test_presence_and_frequency_count_the_output_only(make: Factory) -> None:
    logits = [1.0, 5.0, 4.9, 4.0]
    assert token_of(make, logits, [1, 1], n_prompt=2, presence_penalty=1.0) == 1
    assert token_of(make, logits, [0, 1], n_prompt=1, presence_penalty=0.5) == 2
    assert token_of(make, logits, [0, 1, 2, 2, 1], n_prompt=1, frequency_penalty=0.6) == 3
    assert token_of(make, logits, [0, 1, 1, 1, 2, 2, 2], n_prompt=1, presence_penalty=0.5) == 1


def test_min_tokens_forbids_every_end(make: Factory) -> None:
    logits = [0.0, 1.0, 9.0, 8.0]  # 2 is the end-of-sequence id
    options = {"min_tokens": 2, "stop_token_ids": [3]}
    assert token_of(make, logits, [0, 1], n_prompt=1, **options) == 1
    assert token_of(make, logits, [0, 1, 1], n_prompt=1, **options) == 2


def test_bad_words_look_at_the_whole_history(make: Factory) -> None:
    logits = [0.0, 1.0, 2.0, 9.0]
    assert token_of(make, logits, bad_token_ids=[[3]]) == 2
    assert token_of(make, logits, [0, 1, 2], bad_token_ids=[[1, 2, 3]]) == 2
    assert token_of(make, logits, [0, 2, 1], bad_token_ids=[[1, 2, 3]]) == 3
    assert token_of(make, logits, [2], n_prompt=1, bad_token_ids=[[1, 2, 3]]) == 3, "a history shorter than the word"


def test_row_of_a_draft_sees_the_drafts_before_it(make: Factory) -> None:
    logits = np.tile(np.array([0.0, 1.0, 2.0, 9.0], np.float32), (3, 1))
    sampling = sampling_params(bad_token_ids=[[1, 2, 3]], presence_penalty=20.0)
    case = Case(slot_init(0, sampling, n_prompt=2), [0, 1], (2, 3), logits)
    assert run(make(1, 4), [case]).tokens.tolist() == [3, 1, 1]


def test_no_n_gram_is_repeated(make: Factory) -> None:
    logits = [0.0, 1.0, 2.0, 9.0]
    assert token_of(make, logits, [1, 3, 2, 1], n_prompt=4, no_repeat_ngram_size=2) == 2, "1 3 is in the prompt"
    assert token_of(make, logits, [1, 3, 2, 1], n_prompt=4, no_repeat_ngram_size=3) == 3
    assert token_of(make, logits, [3, 2], n_prompt=1, no_repeat_ngram_size=1) == 1, "no token twice"
    assert token_of(make, logits, [3], n_prompt=1, no_repeat_ngram_size=0) == 3
    assert token_of(make, logits, [3, 3, 3], n_prompt=1, no_repeat_ngram_size=2) == 2, "overlapping"


def test_n_grams_reach_into_the_drafts(make: Factory) -> None:
    logits = np.tile(np.array([0.0, 1.0, 2.0, 9.0], np.float32), (4, 1))
    case = Case(slot_init(0, sampling_params(no_repeat_ngram_size=2), n_prompt=1), [2], (3, 2, 1), logits)
    assert run(make(1, 4), [case]).tokens.tolist() == [3, 3, 2, 3]


def test_top_p_decays_to_its_least_and_is_reset(make: Factory) -> None:
    """Four equal tokens: how many may come says what top-p is."""
    sampler = make(1, 4)
    options = {"top_p": 1.0, "top_p_decay": 0.5, "top_p_min": 0.3, "top_p_reset_ids": 3}
    sampler.bind(slot_init(0, sampling_params(**options), n_prompt=2))

    def kept(output: list[int]) -> int:
        history = np.array([3, 0, *output], np.int32)
        drawn = set()
        for seed in range(60):
            sampler.bind(slot_init(0, sampling_params(**options), n_prompt=2, seed=seed))
            rows = SampleRows.one_each(np.zeros(1, np.int64), np.array([len(history)]), lambda slot: history)
            drawn.add(int(sampler.sample(rows, torch.zeros(1, 4)).tokens[0]))
        assert drawn == set(range(len(drawn)))
        return len(drawn)

    assert [kept(output) for output in ([], [0], [0, 0], [0, 0, 0, 0])] == [4, 2, 2, 2]
    assert [kept(output) for output in ([0, 0, 3], [0, 3, 0], [3])] == [4, 2, 4]
    options["top_p_min"] = 0.01
    assert [kept(output) for output in ([0], [0, 0], [0, 0, 0])] == [2, 1, 1]


def test_top_p_counts_drafts(make: Factory) -> None:
    sampling = sampling_params(top_p=1.0, top_p_decay=0.25)
    logits = np.zeros((3, 4), np.float32)
    drawn = {
        tuple(run(make(1, 4), [Case(slot_init(0, sampling, seed=seed), [0, 1, 3], (2, 1), logits)]).tokens[1:])
        for seed in range(40)
    }
    assert drawn == {(0, 0)}


def test_a_mask_has_the_last_word(make: Factory) -> None:
    case = one_row(sampling_params(embedding_bias={2: 50.0}, logprobs=1), [0.0, 5.0, 4.0, 1.0])
    masked = Case(case.init, case.history, (), case.logits, (frozenset({0, 3}),))
    outcome = run(make(1, 4), [masked])
    assert outcome.tokens.tolist() == [3]
    assert outcome.logprobs[0].top_ids == (1,), "raw logprobs do not know of it"
    nothing = run(make(1, 4), [Case(case.init, case.history, (), case.logits, (frozenset(),))])
    assert "every token is forbidden" in nothing.errors[0]


def test_masks_that_do_not_fit_are_refused(make: Factory) -> None:
    sampler = make(1, 40)
    sampler.bind(slot_init(0, sampling_params()))
    rows = SampleRows.one_each(np.zeros(1, np.int64), np.array([3]), lambda slot: np.zeros(3, np.int32))
    for index, width in ((0, 1), (1, 2), (-2, 2)):
        masks = RowMasks(np.array([index]), np.zeros((1, width), np.uint32))
        with pytest.raises(ValueError, match="masks"):
            sampler.sample(replace(rows, masks=masks), torch.zeros(1, 40))


def test_raw_logprobs_are_of_the_model_s_logits(make: Factory) -> None:
    """Even where the draw is over a copy that somebody has changed."""
    sampler = make(2, 4)
    for slot, bias in enumerate([None, {1: 1.0}]):
        sampler.bind(slot_init(slot, sampling_params(logprobs=1, embedding_bias=bias)))
    rows = SampleRows.one_each(np.arange(2), np.array([3, 3]), lambda slot: np.array([0, 1, 3], np.int32))
    model = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 2)
    outcome = sampler.sample(rows, torch.tensor([[9.0, 0.0, 0.0, 0.0]] * 2), model)
    assert outcome.tokens.tolist() == [0, 0]
    assert [(outcome.logprobs[row].rank, outcome.logprobs[row].top_ids) for row in (0, 1)] == [(4, (3,))] * 2


def test_raw_logprobs_are_the_model_s_own(make: Factory) -> None:
    logits = [1.0, 3.0, 2.0, 3.0]
    sampling = sampling_params(logprobs=2, embedding_bias={0: 100.0}, temperature=0.3)
    entry = run(make(1, 4), [one_row(sampling, logits)]).logprobs[0]
    exact = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0)
    assert (entry.token, entry.rank, entry.top_ids) == (0, 4, (1, 3))
    assert entry.logprob == pytest.approx(exact[0].item(), abs=1e-6)
    assert entry.top_logprobs == pytest.approx([exact[1].item(), exact[3].item()], abs=1e-6)


def test_processed_logprobs_are_those_of_the_draw(make: Factory) -> None:
    sampling = sampling_params(logprobs=4, logprobs_mode="processed", temperature=2.0, top_k=2, bad_token_ids=[[1]])
    entry = run(make(1, 4), [one_row(sampling, [1.0, 30.0, 2.0, 3.0])]).logprobs[0]
    exact = torch.log_softmax(torch.tensor([1.5, 1.0], dtype=torch.float64), 0)
    assert entry.top_ids == (3, 2)
    assert entry.top_logprobs == pytest.approx(exact.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.25, (0,)), (0.26, (0, 1)), (0.5, (0, 1)), (0.75, (0, 1, 2)), (1.0, (0, 1, 2, 3))]
)
def test_top_p_keeps_no_token_once_p_is_reached(make: Factory, top_p: float, kept: tuple[int, ...]) -> None:
    """Four equal masses: a cut that falls exactly between two tokens, and ties that stay with the lower ids."""
    sampling = sampling_params(temperature=1.0, top_p=top_p, logprobs=4, logprobs_mode="processed")
    assert run(make(1, 4), [one_row(sampling, [1.0] * 4)]).logprobs[0].top_ids == kept


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"top_p": 0.5}, {"logprobs": 1}, {"min_tokens": 5}])
@pytest.mark.parametrize(("bad", "words"), [(np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "forbidden")])
def test_a_broken_row_is_the_error_of_its_request_alone(make: Factory, options: dict, bad: float, words: str) -> None:
    good, broken = np.zeros((1, VOCAB), np.float32), np.zeros((1, VOCAB), np.float32)
    broken[0, 1] = bad
    if bad == -np.inf:
        broken[:] = bad
    sampling = sampling_params(**options)
    cases = [Case(slot_init(slot, sampling), [0, 1, 3], (), x) for slot, x in enumerate((good, broken, good))]
    outcome = run(make(3, VOCAB), cases)
    assert list(outcome.errors) == [1]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(outcome.errors[1])
    assert "position 3" in outcome.errors[1]
    assert outcome.tokens[1] == NO_TOKEN
    assert outcome.tokens[0] == run(make(3, VOCAB), cases[:1]).tokens[0] >= 0
    assert 1 not in outcome.logprobs


def test_forbidding_everything_fails_the_row(make: Factory) -> None:
    sampling = sampling_params(bad_token_ids=[[token] for token in range(4)])
    assert "every token is forbidden" in run(make(1, 4), [one_row(sampling, [0.0] * 4)]).errors[0]


def test_raw_logprobs_notice_what_the_steps_have_hidden(make: Factory) -> None:
    sampling = sampling_params(bad_token_ids=[[1]], logprobs=1)
    outcome = run(make(1, 3), [one_row(sampling, [0.0, np.nan, 1.0])])
    assert "NaN" in outcome.errors[0]
    assert outcome.tokens[0] == NO_TOKEN


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("stop_token_ids", {"stop_token_ids": [VOCAB]}),
        ("embedding_bias", {"embedding_bias": {VOCAB: 1.0}}),
        ("embedding_bias", {"embedding_bias": {1: np.nan}}),
        ("embedding_bias", {"embedding_bias": {1: 1e39}}),
        ("bad_token_ids", {"bad_token_ids": [[1, -1]]}),
        ("presence_penalty", {"presence_penalty": np.nan}),
        ("temperature", {"temperature": np.inf}),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(make: Factory, field: str, options: dict) -> None:
    sampler = make(1, VOCAB)
    sampler.bind(slot_init(0, sampling_params(embedding_bias={7: 100.0})))
    with pytest.raises(RequestError, match=f"SamplingParams.{field}: ") as caught:
        sampler.bind(slot_init(0, sampling_params(**options)))
    assert caught.value.param == field
    rows = SampleRows.one_each(np.array([0]), np.array([3]), lambda slot: np.zeros(3, np.int32))
    assert sampler.sample(rows, torch.zeros(1, VOCAB)).tokens.tolist() == [0], "the old sequence's bias is gone"


def test_a_slot_forgets_its_last_sequence(make: Factory) -> None:
    sampler = make(1, VOCAB)
    full = sampling_params(
        temperature=1.0, top_k=3, min_p=0.1, repetition_penalty=2.0, min_tokens=9, bad_token_ids=[[0]], logprobs=2
    )
    plain = Case(slot_init(0, sampling_params()), [0, 1, 3], (), np.eye(1, VOCAB, dtype=np.float32))
    run(sampler, [Case(slot_init(0, full), [0, 1, 3], (), plain.logits)])
    sampler.release(0)
    outcome = run(sampler, [plain])
    assert (outcome.tokens.tolist(), outcome.logprobs, outcome.errors) == ([0], {}, {})


def test_history_and_positions_must_agree(make: Factory) -> None:
    sampler = make(1, VOCAB)
    sampler.bind(slot_init(0, sampling_params(repetition_penalty=2.0)))
    rows = SampleRows.one_each(np.array([0]), np.array([4]), lambda slot: np.zeros(3, np.int32))
    with pytest.raises(EngineError, match="slot 0 has 3 tokens of history, and row 0 draws position 4"):
        sampler.sample(rows, torch.zeros(1, VOCAB))


def test_logits_of_another_shape_or_type_are_refused(make: Factory) -> None:
    sampler = make(1, VOCAB)
    rows = SampleRows.one_each(np.array([0]), np.array([4]), lambda slot: np.zeros(4, np.int32))
    for logits in (torch.zeros(1, VOCAB + 1), torch.zeros(2, VOCAB), torch.zeros(1, VOCAB, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"expected torch.float32 \[1, 24\]"):
            sampler.sample(rows, logits)


def test_no_rows_give_nothing(make: Factory) -> None:
    rows = SampleRows.one_each(np.zeros(0, np.int64), np.zeros(0, np.int64), lambda slot: np.zeros(0))
    outcome = make(1, VOCAB).sample(rows, torch.zeros(0, VOCAB))
    assert (outcome.tokens.tolist(), outcome.errors, outcome.logprobs) == ([], {}, {})


def test_logits_are_not_changed(make: Factory) -> None:
    logits = np.random.default_rng(0).normal(size=(1, VOCAB)).astype(np.float32)
    options = {"embedding_bias": {1: 2.0}, "bad_token_ids": [[0]], "temperature": 0.5, "top_p": 0.9, "logprobs": 2}
    before = logits.copy()
    run(make(1, VOCAB), [Case(slot_init(0, sampling_params(**options)), [0, 1, 3], (), logits)])
    assert (logits == before).all()


@pytest.mark.parametrize("n_top", [0, 3, 100])
def test_prompt_logprobs(make: Factory, n_top: int) -> None:
    generator = np.random.default_rng(1)
    logits = np.round(generator.normal(0, 2, (5, VOCAB)), 1).astype(np.float32)
    tokens = generator.integers(0, VOCAB, 5)
    got = make(1, VOCAB).prompt_logprobs(torch.from_numpy(logits), tokens, n_top)
    assert got == [reference.raw_logprobs(x, token, n_top) for x, token in zip(logits, tokens.tolist(), strict=True)]
    assert Counter(len(entry.top_ids) for entry in got) == {min(n_top, VOCAB): 5}


def test_prompt_logprobs_fail_by_name(make: Factory) -> None:
    sampler = make(1, VOCAB)
    with pytest.raises(RequestError, match="prompt_logprobs: the logits hold NaN"):
        sampler.prompt_logprobs(torch.full((1, VOCAB), torch.nan), np.array([0]), 1)
    with pytest.raises(RequestError, match="prompt_logprobs: the prompt holds ids beyond the 24 logits"):
        sampler.prompt_logprobs(torch.zeros(1, VOCAB), np.array([VOCAB]), 1)
