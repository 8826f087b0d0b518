"""Requests that are almost right: each is answered or refused, and one that runs beside them does not notice."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from asgi_rig import Answer, Application, application
from mutations import MUTATIONS, Raw, mutated

SEED = 20
AT_ONCE = 6
NEIGHBOUR = {
    "prompt": "the river runs",
    "max_tokens": 400,
    "temperature": 0,
    "ignore_eos": True,
    "detokenize": False,
    "logprobs": 0,
    "stream": True,
}


def check(raw: Raw, answer: Answer, *, whole: bool) -> None:
    """No fault of the server, and the shape of the answer. ``whole``: nobody has hung up."""
    what = (answer.status, raw.done, raw.method, raw.path, raw.headers, raw.body[:300], answer.body[:300])
    assert 200 <= answer.status < 500, what
    if answer.status >= 400:
        assert answer.kind == "application/json", what
        error = json.loads(answer.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, what
        assert error["message"], what
    elif answer.kind == "text/event-stream":
        assert answer.body.endswith(b"data: [DONE]\n\n") or not whole, what
    elif answer.kind == "application/json":
        json.loads(answer.body)


async def stream(app: Application) -> list[Any]:
    """Tokens of the neighbour, and their logprobs where the operators promise bits."""
    answer = await app.post("/v1/completions", NEIGHBOUR)
    assert answer.status == 200, answer.body
    events = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n\n") if line]
    assert events.pop() == b"[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    is_exact = set(app.llm.effective_config["operators"].values()) == {"native"}
    logprobs = [value for choice in choices for value in choice["logprobs"]["token_logprobs"]]
    tokens = [token for choice in choices for token in choice["token_ids"]]
    return list(zip(tokens, logprobs, strict=True)) if is_exact else tokens


async def fuzz(app: Application, numbers: Iterable[int]) -> tuple[Counter[int], Counter[str]]:
    """Several at once; a few clients hang up. Returns statuses, and mutations met."""
    statuses, met = Counter(), Counter()
    queue = iter(numbers)

    async def worker() -> None:
        for number in queue:
            raw = mutated(SEED, number)
            patience = random.Random(number).choice((None,) * 12 + (0.0, 0.003))
            async with asyncio.timeout(60):
                answer = await app.ask(raw, patience)
            # Who hangs up before the head gets none, or a status that nobody reads.
            if patience is None or answer.status not in (0, 499):
                check(raw, answer, whole=patience is None)
            statuses[answer.status] += 1
            met.update(raw.done)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    return statuses, met


async def hurts_nobody(folder: Path, numbers: range) -> tuple[Counter[int], Counter[str]]:
    async with application(folder, max_batch_size=16, max_seq_len=512) as app:
        alone = await stream(app)
        assert len(alone) == NEIGHBOUR["max_tokens"]
        fuzzing = asyncio.ensure_future(fuzz(app, numbers))
        while not fuzzing.done():
            assert await stream(app) == alone
        seen = await fuzzing
        await app.idle()
        assert await stream(app) == alone
        return seen


@pytest.mark.parametrize(
    "numbers",
    [range(3_000), pytest.param(range(3_000, 10_000), marks=pytest.mark.slow)],
    ids=["quick", "slow"],
)
def test_ten_thousand_requests_hurt_neither_server_nor_neighbour(folder: Path, numbers: range) -> None:
    statuses, met = asyncio.run(hurts_nobody(folder, numbers))
    # A fuzz that is refused at the door proves nothing about the rooms behind it.
    assert statuses[200] > len(numbers) / 10
    assert statuses[400] > len(numbers) / 4
    assert {404, 405, 499, 0} <= set(statuses)
    assert set(MUTATIONS) == set(met)
