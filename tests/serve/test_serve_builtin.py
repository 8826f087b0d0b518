"""The built-in model behind the server."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving_rig import Running, crowd, served_apart

from project import ROOT

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served_apart(Path("smollm2"), {"model_name": "smollm2"}, load_format="auto") as running:
        yield running


def test_the_example_of_the_manual_runs(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), flags=re.DOTALL)
    assert "http://127.0.0.1:8000" in code
    exec(code.replace("http://127.0.0.1:8000", running.url), {})
    assert "Venus" in capsys.readouterr().out


def test_sixteen_conversations_at_once_equal_one_alone(running: Running) -> None:
    questions = [f"What is {a} plus {a + 1}? Answer in one word." for a in range(15)]
    questions.append("What is the capital of France?")

    async def ask(client: openai.AsyncOpenAI, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        stream = await client.chat.completions.create(
            model="smollm2", messages=messages, temperature=0, max_completion_tokens=12, stream=True
        )
        return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])

    async def all_at_once(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, question) for question in questions))

    texts = asyncio.run(all_at_once(running.url))
    assert "Paris" in texts[-1]
    alone = running.client().chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": questions[3]}],
        temperature=0,
        max_completion_tokens=12,
    )
    assert alone.choices[0].message.content == texts[3]
    running.idle()


def test_thirty_two_clients_of_which_a_third_hang_up(running: Running) -> None:
    whole, gone = asyncio.run(crowd(running, "smollm2", 32, (4, 8), 1.0, random.Random(8)))
    assert whole >= 21
    assert gone >= 6
    running.idle()
    assert running.ask("stats")[-1]["witnesses"]["cancelled"] >= gone
    assert running.post("/v1/completions", {"prompt": "One, two,", "max_tokens": 2}).status_code == 200
