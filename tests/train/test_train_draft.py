"""Training of draft heads: what is computed while training is what the engine computes, and it learns."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from draft_heads import guess, write_head
from headrace import LLM, ConfigError, EagleDecodingConfig, MTPDecodingConfig, SamplingParams
from headrace.eval import tiny
from headrace.train.conversations import answered, made_up, read_data, write_answers
from headrace.train.eagle3 import TrainableHead
from headrace.train.kinds import KINDS
from headrace.train.layers import HeadShape
from headrace.train.lessons import Conversation
from headrace.train.mtp import TrainableMtp
from headrace.train.recipe import train_head
from headrace.train.trainer import Settings, _walk
from mtp_layers import layer_config, make_llama_layer
from tiny_text import write_tokenizer


class Quiet:
    def stage(self, what: str, total: float) -> None: ...

    def advance(self, to: float, note: str = "") -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven layers: enough for the usual three to be different."""
    with torch.no_grad():
        return tiny.save(tiny.make("llama", num_hidden_layers=7), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def conversations(folder: Path) -> list[Conversation]:
    """Three, eight times over: what random weights say cannot be guessed, but it can be learnt by heart."""
    prompts = [[5 + i % 3, 6, 7] * 3 for i in range(24)]
    with LLM(folder, skip_tokenizer_init=True, num_threads=1, dtype="float32") as llm:
        params = SamplingParams(max_tokens=40, end_id=-1, detokenize=False)
        outputs = llm.generate(prompts, params, use_tqdm=False)
    return [
        Conversation((*prompt, *out.outputs[0].token_ids), len(prompt))
        for prompt, out in zip(prompts, outputs, strict=True)
    ]


def test_a_chain_in_training_is_the_chain_of_drafting(folder: Path, tmp_path: Path) -> None:
    head = write_head(tmp_path / "head", folder)
    config, tensors = json.loads((head / "config.json").read_text()), load_file(head / "model.safetensors")
    trainable = TrainableHead(HeadShape(config), 128)
    trainable.load_state_dict({name: t for name, t in tensors.items() if name not in ("d2t", "t2d")})
    generator = torch.Generator().manual_seed(1)
    states, embedded = torch.randn(2, 9, 128, generator=generator), torch.randn(2, 12, 64, generator=generator)
    with torch.no_grad():
        guesses = [trainable.lm_head(step) for step in trainable(states, embedded, 4)]
    for row, position, step in ((0, 0, 0), (1, 4, 0), (0, 3, 1), (1, 8, 2), (0, 6, 3)):
        wanted = guess(
            config,
            tensors,
            states[row, : position + 1],
            embedded[row, : position + 1 + step],
            tensors["lm_head.weight"],
        )
        torch.testing.assert_close(guesses[step][row, position], wanted, atol=1e-4, rtol=1e-4)


def test_a_chain_of_an_mtp_layer_is_that_of_drafting() -> None:
    layer = make_llama_layer(64, 317)
    trainable = TrainableMtp(HeadShape({**layer_config(64, 317), "draft_vocab_size": 16}))
    stored = {name.removeprefix("mtp."): tensor for name, tensor in layer.tensors().items()}
    assert set(trainable.state_dict()) == {*stored, "lm_head.weight"}
    trainable.load_state_dict(stored, strict=False)
    generator = torch.Generator().manual_seed(1)
    states, embedded = torch.randn(2, 9, 64, generator=generator), torch.randn(2, 12, 64, generator=generator)
    with torch.no_grad():
        guesses = trainable(states, embedded, 4)
    for row, position, step in ((0, 0, 0), (1, 4, 0), (0, 3, 1), (1, 8, 2), (0, 6, 3)):
        read = states[row, : position + 1]
        for _ in range(step + 1):
            made = layer(embedded[row, : len(read)], read)
            read = torch.cat([read, made[-1:]])
        torch.testing.assert_close(guesses[step][row, position], read[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["eagle3", pytest.param("mtp", marks=pytest.mark.slow)])
def test_a_trained_head_drafts_as_well_as_was_measured_and_changes_nothing(
    folder: Path, conversations: list[Conversation], tmp_path: Path, kind: str
) -> None:
    settings = Settings(n_steps=3, epochs=25, seconds=60.0, rate=3e-3)
    trained = train_head(
        folder, conversations, tmp_path / "head", kind=kind, draft_vocab=200, mode="float32", max_tokens=49,
        settings=settings, reporter=Quiet(),
    )  # fmt: skip
    assert trained.tokens_per_step[1] > 1.5, trained
    assert trained.tokens_per_step == sorted(trained.tokens_per_step)
    way = EagleDecodingConfig if kind == "eagle3" else MTPDecodingConfig
    config = way(max_draft_len=3, speculative_model=str(trained.folder))
    prompts = [list(one.tokens[: one.n_prompt]) for one in conversations[::5]]
    params = SamplingParams(max_tokens=40, end_id=-1, detokenize=False)
    with LLM(folder, skip_tokenizer_init=True, num_threads=1, dtype="float32", speculative_config=config) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seen = llm.get_stats()[-1]["witnesses"]
    for one, output in zip(conversations[::5], outputs, strict=True):
        assert tuple(output.outputs[0].token_ids) == one.tokens[one.n_prompt :]
    checks = seen["drafts_proposed"] / 3
    assert 1 + seen["drafts_accepted"] / checks > 1 + 0.6 * (trained.tokens_per_step[3] - 1)


def test_an_answer_is_walked_through_as_it_is_generated() -> None:
    assert _walk([]) == 0
    assert _walk([0, 0, 0]) == 3
    assert _walk([3, 0, 0, 0, 1, 0, 2]) == 3  # 0 to 3, 4 to 5, 6 and beyond the end


def test_what_data_may_be(tmp_path: Path) -> None:
    text, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("What is rain?\n\n Why? \n")
    assert read_data(text) == ["What is rain?", "Why?"]
    messages = [{"role": "user", "content": "Hi"}]
    entries = [
        {"prompt": "Why?"},
        {"messages": messages},
        {"tokens": [4, 5, 6], "prompt_tokens": 2, "temperature": 0.7},
    ]
    lines.write_text("\n".join(map(json.dumps, entries)))
    assert read_data(lines) == ["Why?", messages, Conversation((4, 5, 6), 2, 0.7)]
    for bad in ("{", '{"text": "x"}', '{"tokens": [1], "prompt_tokens": 1}', '{"messages": []}'):
        lines.write_text('{"prompt": "Why?"}\n' + bad)
        with pytest.raises(ConfigError, match=r"prompts\.jsonl, line 2"):
            read_data(lines)
    text.write_text("\n")
    with pytest.raises(ConfigError, match="there is no prompt in it"):
        read_data(text)


def test_too_little_is_said(folder: Path, tmp_path: Path) -> None:
    few = [Conversation((5, 6, 7), 2), Conversation(tuple(range(3, 30)), 2)]
    with pytest.raises(ConfigError, match="1 conversations have an answer of 8 tokens"):
        train_head(
            folder, few, tmp_path / "head", draft_vocab=64, mode="float32", max_tokens=49, settings=Settings(),
            reporter=Quiet(),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="the model has 5 layers"):
        KINDS["eagle3"].config({"hidden_size": 64, "num_hidden_layers": 5}, 64)


def test_prompts_are_answered_by_the_model_and_every_answer_is_kept(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(folder, 317)
    given = ["Hi there", Conversation((4, 5, 6), 2), [{"role": "user", "content": "Bye"}]]
    seen: list[Conversation] = []
    with LLM(folder, num_threads=1, dtype="float32") as llm:
        assert llm.tokenizer is not None
        ids = llm.tokenizer.encode("Hi there")
        done = answered(llm, given, 9, 0, seen.extend)
    assert seen == done
    assert len(done) == 3
    assert given[1] in done
    (hi,) = [one for one in done if one.tokens[: one.n_prompt] == tuple(ids)]
    assert 1 <= len(hi.tokens) - hi.n_prompt <= 9
    path = tmp_path / "answers.jsonl"
    write_answers(path, done)
    assert read_data(path) == done


class _Asking:
    """A model whose user turns go on in turn with these texts, and how they end."""

    def __init__(self, turns: list[tuple[str, str]], has_chat_template: bool = True) -> None:
        self._turns, self.asked = cycle(turns), []
        self.tokenizer = SimpleNamespace(
            has_chat_template=has_chat_template,
            chat=lambda messages: f"user: {messages[0]['content']} end",
            encode=lambda text, add_special_tokens: [ord(letter) for letter in text],
        )

    def generate(self, prompts: list[list[int]], params: list[SamplingParams], use_tqdm: bool) -> list[SimpleNamespace]:
        self.asked += zip(prompts, params, strict=True)
        texts = [next(self._turns) for _ in prompts]
        return [SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=how)]) for text, how in texts]


def test_a_model_makes_up_prompts_where_the_user_speaks() -> None:
    turns = [("What is rain made of? ", "stop"), ("Tell me about", "length"), ("Hi", "stop"), ("Why is it so?", "stop")]
    model, seen = _Asking(turns), list[int]()
    assert made_up(model, 2, 0, seen.append) == ["What is rain made of?", "Why is it so?"]  # type: ignore[arg-type]
    assert seen == [2]
    assert {bytes(prompt) for prompt, _ in model.asked} == {b"user: "}
    assert len({params.seed for _, params in model.asked}) == len(model.asked)
    with pytest.raises(ConfigError, match="in 12 attempts the model made up 2 prompts"):
        made_up(_Asking(turns), 3, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no chat template"):
        made_up(_Asking(turns, has_chat_template=False), 3, 0)  # type: ignore[arg-type]
