"""/v1/completions through the official client."""

from __future__ import annotations

import math

import pytest
from serving_rig import NAME, Running

from headrace import SamplingParams

PROMPT = "the river runs"


def greedy(tiny: Running, prompt: object, n: int, **options: object) -> object:
    params = SamplingParams(max_tokens=n, temperature=0.0, **options)
    return tiny.llm.generate(prompt, params, use_tqdm=False)


def test_it_gives_what_the_python_api_gives(tiny: Running) -> None:
    expected = greedy(tiny, PROMPT, 12)
    got = tiny.client().completions.create(model=NAME, prompt=PROMPT, max_tokens=12, temperature=0)
    assert got.choices[0].text == expected.outputs[0].text
    assert got.choices[0].finish_reason == expected.outputs[0].finish_reason
    assert (got.object, got.model) == ("text_completion", NAME)
    assert got.usage.prompt_tokens == len(expected.prompt_token_ids) == len(PROMPT)
    assert got.usage.completion_tokens == expected.outputs[0].length
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    tiny.idle()


@pytest.mark.parametrize("prompt", ["ab", [70, 71, 72], ["ab", "cd", "e"], [[70, 71], [72, 73, 74]], ["ab", [70]]])
def test_every_form_of_prompt_whole_and_streamed(tiny: Running, prompt: object) -> None:
    many = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    expected = [output.outputs[0].text for output in greedy(tiny, many, 8, ignore_eos=True)]
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0.0, "extra_body": {"ignore_eos": True}}
    whole = tiny.client().completions.create(model=NAME, **body)
    assert [choice.text for choice in whole.choices] == expected
    assert [choice.index for choice in whole.choices] == list(range(len(many)))
    texts = [""] * len(many)
    ends = 0
    for chunk in tiny.client().completions.create(model=NAME, stream=True, **body):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends += choice.finish_reason is not None
    assert texts == expected
    assert ends == len(many)


def test_n_with_a_seed_whole_and_streamed(tiny: Running) -> None:
    body = {"model": NAME, "prompt": [PROMPT, "b"], "max_tokens": 10, "n": 3, "seed": -5}
    whole = tiny.client().completions.create(**body)
    texts = [choice.text for choice in whole.choices]
    assert len(set(texts)) > 3
    streamed = [""] * 6
    for chunk in tiny.client().completions.create(stream=True, stream_options={"include_usage": True}, **body):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts
    assert chunk.choices == []
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens
    assert chunk.usage.prompt_tokens == len(PROMPT) + 1


def test_stop_cuts_and_is_reported(tiny: Running) -> None:
    free = tiny.client().completions.create(model=NAME, prompt=PROMPT, max_tokens=40, temperature=0).choices[0].text
    stop = free[5:7]
    cut = tiny.client().completions.create(model=NAME, prompt=PROMPT, max_tokens=40, temperature=0, stop=["\0", stop])
    assert cut.choices[0].text == free[: free.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].stop_reason == stop


def test_logit_bias_forces_a_token(tiny: Running) -> None:
    got = tiny.client().completions.create(
        model=NAME, prompt="a", max_tokens=3, temperature=0, logit_bias={"70": 100}, logprobs=0
    )
    token = tiny.llm.tokenizer.decode([70])
    assert got.choices[0].text == token * 3
    assert got.choices[0].logprobs.tokens == [token] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_echo_and_logprobs(tiny: Running, stream: bool, n: int) -> None:
    expected = tiny.llm.generate(
        "hello", SamplingParams(max_tokens=4, temperature=1.0, seed=9, n=n, logprobs=2, prompt_logprobs=2)
    )
    body = {"model": NAME, "prompt": "hello", "max_tokens": 4, "seed": 9, "n": n, "logprobs": 2, "echo": True}
    got = tiny.client().completions.create(stream=stream, **body)
    pieces = [choice for chunk in got for choice in chunk.choices] if stream else got.choices
    for index in range(n):
        mine = [piece for piece in pieces if piece.index == index]
        one = expected.outputs[index]
        assert "".join(piece.text for piece in mine) == "hello" + one.text
        values = [value for piece in mine for value in piece.logprobs.token_logprobs]
        entries = [*expected.outputs[0].prompt_logprobs, *one.logprobs]
        ids = [*expected.prompt_token_ids, *one.token_ids]
        assert values[0] is None
        for value, entry, token in zip(values[1:], entries[1:], ids[1:], strict=True):
            assert value == pytest.approx(entry[token].logprob, abs=1e-5)
        tops = [top for piece in mine for top in piece.logprobs.top_logprobs]
        texts = [text for piece in mine for text in piece.logprobs.tokens]
        assert tops[0] is None
        for text, value, top, entry in zip(texts[1:], values[1:], tops[1:], entries[1:], strict=True):
            assert top[text] == value
            assert len(top) == len(entry)
            assert max(top.values()) == pytest.approx(max(one.logprob for one in entry.values()), abs=1e-5)
        offsets = [offset for piece in mine for offset in piece.logprobs.text_offset]
        assert offsets[:6] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("prompt", "change", "echoed"), [([70], {}, ""), ("abcdef", {"truncate_prompt_tokens": 2}, "ef"), ("a", {}, "a")]
)
def test_an_echo_of_ids_of_a_cut_prompt_and_of_one_token(
    tiny: Running, prompt: object, change: dict[str, object], echoed: str
) -> None:
    echoed = tiny.llm.tokenizer.decode(prompt) if isinstance(prompt, list) else echoed
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1, **change}
    choice = tiny.post("/v1/completions", body).json()["choices"][0]
    assert choice["text"].startswith(echoed)
    rows = choice["logprobs"]
    assert rows["token_logprobs"][0] is None
    assert len({len(column) for column in rows.values()}) == 1
    assert len(rows["tokens"]) == len(echoed) + 1


def test_a_deadline_gives_what_is_there(serve: object) -> None:
    with serve({"request_timeout": 0.5}) as running:
        got = running.client().completions.create(
            model=NAME, prompt="a", max_tokens=2000, extra_body={"ignore_eos": True}
        )
        assert 0 < got.usage.completion_tokens < 2000
        assert got.choices[0].finish_reason == "length"
        assert got.choices[0].stop_reason == "timeout"
        running.idle()


def test_usage_so_far_comes_with_every_chunk(tiny: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 48, "temperature": 0, "extra_body": {"ignore_eos": True}}
    chunks = list(tiny.client().completions.create(stream=True, stream_options=options, **body))
    # A server that falls behind puts several tokens into a chunk, but not all of so many.
    made = [chunk.usage.completion_tokens for chunk in chunks]
    assert made == sorted(made)
    assert made[0] < made[-1] == 48
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {len(PROMPT)}
    assert chunks[-1].choices == []


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_in_place_of_text(tiny: Running, stream: bool) -> None:
    expected = greedy(tiny, PROMPT, 7, ignore_eos=True).outputs[0]
    extra = {"ignore_eos": True, "detokenize": False}
    got = tiny.client().completions.create(
        model=NAME, prompt=PROMPT, max_tokens=7, temperature=0, stream=stream, extra_body=extra
    )
    choices = [choice for chunk in got for choice in chunk.choices] if stream else got.choices
    assert [token for choice in choices for token in choice.token_ids] == expected.token_ids
    assert {choice.text for choice in choices} == {""}
    assert choices[-1].finish_reason == "length"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_logprobs(tiny: Running, path: str) -> None:
    """With more of them for the outputs, so that each list shows its own number."""
    ask = {"prompt": "hello"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hello"}]}
    text = "hello" if "prompt" in ask else "<user>hello\n<assistant>"
    params = SamplingParams(max_tokens=2, temperature=1.0, seed=3, n=2, prompt_logprobs=1, add_special_tokens=False)
    expected = tiny.llm.generate(text, params)
    body = {**ask, "max_tokens": 2, "seed": 3, "n": 2, "prompt_logprobs": 1}
    if "prompt" in ask:
        body |= {"echo": True, "logprobs": 3, "add_special_tokens": False}
    entries = expected.outputs[0].prompt_logprobs
    for choice in tiny.post(path, body).json()["choices"]:
        rows = choice["prompt_logprobs"]
        assert rows[0] is None
        for row, entry, token in zip(rows[1:], entries[1:], expected.prompt_token_ids[1:], strict=True):
            assert row.keys() == {str(one) for one in entry}
            mine = row[str(token)]
            assert mine["logprob"] == pytest.approx(entry[token].logprob, abs=1e-5)
            assert mine["rank"] == entry[token].rank
            assert mine["decoded_token"] == tiny.llm.tokenizer.decode([token])
    alone = tiny.post("/v1/completions", {"prompt": [70], "max_tokens": 1, "prompt_logprobs": 1}).json()
    assert alone["choices"][0]["prompt_logprobs"] == [None]


def test_processed_logprobs_are_those_of_the_draw(tiny: Running) -> None:
    def sum_of_two(mode: str) -> float:
        body = {"prompt": "a", "max_tokens": 1, "seed": 1, "logprobs": 2, "top_k": 2, "logprobs_mode": mode}
        rows = tiny.post("/v1/completions", body).json()["choices"][0]["logprobs"]
        return sum(math.exp(value) for value in rows["top_logprobs"][0].values())

    assert sum_of_two("raw") < 0.9
    assert sum_of_two("processed") == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "fields",
    [{"use_beam_search": True, "best_of": 3, "length_penalty": 1.0, "stop": ["e", "a"]}, {"best_of": 4, "seed": 3}],
)
def test_beams_and_best_of_whole_and_streamed(tiny: Running, fields: dict[str, object]) -> None:
    params = SamplingParams(n=2, max_tokens=12, temperature=1.0, **fields)
    expected = tiny.llm.generate(PROMPT, params, use_tqdm=False).outputs
    body = {"prompt": PROMPT, "n": 2, "max_tokens": 12, "extra_body": fields}
    whole = tiny.client().completions.create(model=NAME, **body)
    assert [(choice.text, choice.finish_reason) for choice in whole.choices] == [
        (one.text, one.finish_reason) for one in expected
    ]
    texts = ["", ""]
    for chunk in tiny.client().completions.create(model=NAME, stream=True, **body):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [one.text for one in expected]
    tiny.idle()
