"""A browser, and what tests of the page do with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Route

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 10_000
"""Milliseconds."""
# Nothing of the browser's own goes to the network; there is no sandbox for root in a container.
_ARGUMENTS = (
    *("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-dev-shm-usage"),
)


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser on the path: none of {', '.join(BROWSERS)} (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page at ``url`` in a profile of its own. Fails at the end if it had a fault or broke its own policy."""
    context = browser.new_context(**{"viewport": {"width": 1000, "height": 700}, **options})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None)
    page.on("request", lambda request: None if request.url.startswith(url) else faults.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert not faults


def send(page: Page, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def answered(page: Page) -> None:
    """Waits until the page takes questions again."""
    page.wait_for_selector("[data-stop]", state="hidden")


def until(page: Page, expression: str) -> None:
    """Waits for an expression of the page's own to be true. (Playwright's way of waiting breaks the page's policy.)"""
    for _ in range(PATIENCE // 20):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"it did not happen: {expression}")


def settings(page: Page, **fields: str) -> None:
    page.click("#open-settings")
    for name, value in fields.items():
        page.fill(f"#settings [name={name}]", value)
    page.click("#settings [type=submit]")


def never_ending(page: Page) -> None:
    """Answers go on to their limit: what a random model draws may be the end at any token."""
    page.route(
        "**/v1/chat/completions",
        lambda route, request: route.continue_(post_data=json.dumps({**request.post_data_json, "ignore_eos": True})),
    )


class Script:
    """Stands between the page and /v1/chat/completions: keeps what is asked, and answers as it is told."""

    def __init__(self, page: Page) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        page.route("**/v1/chat/completions", self._serve)

    def text(self, *pieces: str, finish: str = "stop", ends: bool = True) -> None:
        """The next answer. ``ends``: whether it comes to its end, with usage and [DONE]."""
        chunks: list[Any] = [_chunk({"content": piece}) for piece in pieces]
        if ends:
            usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)}
            chunks += [_chunk({}, finish), {"choices": [], "usage": usage}]
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"] * ends
        self._answers.append({"status": 200, "content_type": "text/event-stream", "body": "".join(events)})

    def refusal(self, status: int, message: str, **headers: str) -> None:
        error = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}})
        kind = {"content-type": "application/json"}
        self._answers.append({"status": status, "body": error, "headers": kind | headers})

    def _serve(self, route: Route, request: Request) -> None:
        self.bodies.append(request.post_data_json)
        route.fulfill(**self._answers.pop(0))


def _chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "stop_reason": None}]}
