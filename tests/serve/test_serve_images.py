"""Pictures in conversations: content parts of type image_url."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from asgi_rig import Application, application
from PIL import Image

from headrace import SamplingParams
from headrace.eval import tiny
from parity.mllama import picture
from tiny_text import write_tokenizer

PLACE = "<|image|>"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content"
    " %}{% if part.type == 'image' %}<|image|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mllama")
    with torch.no_grad():
        model = tiny.make("mllama")
        tiny.save(model, path)
    write_tokenizer(path, model.config.vocab_size, TEMPLATE, beyond=(PLACE,))
    return path


def url_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def asking(*parts: Any, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0, **more}


def image_part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


async def asked_of(app: Application, body: dict[str, Any], status: int = 200) -> Any:
    answer = await app.post("/v1/chat/completions", body)
    assert answer.status == status, answer.body
    return json.loads(answer.body)


def run(folder: Path, use: Any, **engine: Any) -> Any:
    async def main() -> Any:
        async with application(folder, load_format="auto", dtype="float32", **engine) as app:
            return await use(app)

    return asyncio.run(main())


def test_an_answer_is_that_of_the_python_api(folder: Path) -> None:
    one, two = picture(1, 40, 90), picture(2, 28, 28)

    async def use(app: Application) -> None:
        body = asking("What is ", image_part(url_of(one), detail="auto"), " beside ", image_part(url_of(two)), "?")
        got = await asked_of(app, body)
        text = f"<user>What is {PLACE} beside {PLACE}?"
        params = SamplingParams(max_tokens=8, temperature=0.0, add_special_tokens=False)
        asked = {"prompt": text, "multi_modal_data": {"image": [one, two]}}
        wanted = await asyncio.to_thread(app.llm.generate, asked, params, use_tqdm=False)
        assert got["choices"][0]["message"]["content"] == wanted.outputs[0].text
        assert got["usage"]["prompt_tokens"] == len(wanted.prompt_token_ids)
        other = await asked_of(app, asking("What is ", image_part(url_of(two)), "?"))
        assert other["choices"][0]["message"]["content"] != wanted.outputs[0].text

    run(folder, use)


def test_what_is_no_picture_is_a_400_that_says_why(folder: Path) -> None:
    good = url_of(picture(1, 28, 28))

    async def use(app: Application) -> None:
        for part, words in {
            "https://example.com/a.png": "nothing is fetched here",
            "file:///etc/passwd": "nothing is fetched here",
            "/etc/passwd": "nothing is fetched here",
            "data:image/png,abc": "data:image/...;base64",
            "data:image/png;base64,!": "no base64",
            "data:image/png;base64,AAAA": "cannot be read",
            good[:-400] + "AAAA": "cannot be read",
        }.items():
            answer = await asked_of(app, asking("a", image_part(part)), 400)
            assert words in answer["error"]["message"], answer
        for body, words in (
            (asking(image_part(good, detail="high")), "detail"),
            (asking(f"{PLACE} and ", image_part(good)), "2 places for media of kind 'image'"),
            (asking(f"{PLACE}"), "1 places for media of kind 'image'"),
            (asking({"type": "input_image", "image_url": good}), "input_image"),
        ):
            answer = await asked_of(app, body, 400)
            assert words in answer["error"]["message"], answer

    run(folder, use)
