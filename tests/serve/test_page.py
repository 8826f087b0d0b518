"""The chat page in a real browser: against the server where time matters, against a script where the text does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from browser_rig import Script, answered, browser, never_ending, opened, send, settings, until
from serving_rig import Running, slowed, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ANSWER = ".answer:last-child .content"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def page(chromium: Browser, tiny: Running) -> Iterator[Page]:
    with opened(chromium, f"{tiny.url}/") as page:
        yield page
    tiny.idle()


# Against the server.


def test_an_answer_grows_and_shows_what_it_took(page: Page, tiny: Running) -> None:
    until(page, "document.querySelector('#model').textContent === 'tiny'")
    never_ending(page)
    settings(page, max_completion_tokens="40")
    with slowed(tiny.llm, 0.03):
        send(page, "hello")
        page.wait_for_selector(f"{ANSWER} > *")
        early = page.inner_text(ANSWER)
        until(page, f"document.querySelector('.answer .content').innerText.length > {len(early)}")
        # All of this has happened while the answer was being made.
        assert tiny.serving.jobs
        answered(page)
    facts = page.inner_text(".facts").replace("\u00a0", " ")
    assert "40 tokens ·" in facts
    assert "tokens/s" in facts
    assert "first after" in facts
    # "<user>hello\n<assistant>" in tokens of one byte.
    assert "prompt 23" in facts


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stopping_makes_the_server_stop(page: Page, tiny: Running, how: str) -> None:
    never_ending(page)
    gone = _gone(tiny)
    with slowed(tiny.llm, 0.03):
        send(page, "hello")
        page.wait_for_selector(f"{ANSWER} > *")
        assert tiny.serving.jobs
        if how == "button":
            page.click("[data-stop]")
        else:
            page.keyboard.press("Escape")
        wait_for(lambda: not tiny.serving.jobs)
        assert _gone(tiny) == gone + 1
    answered(page)
    assert page.inner_text(".facts").startswith("stopped")
    assert page.inner_text(ANSWER)


def _gone(running: Running) -> float:
    lines = running.get("/prometheus/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("headrace_client_gone_total"))


def test_leaving_the_page_makes_the_server_stop_and_keeps_what_has_come(page: Page, tiny: Running) -> None:
    never_ending(page)
    with slowed(tiny.llm, 0.03):
        send(page, "hello")
        page.wait_for_selector(f"{ANSWER} > *")
        page.reload()
        wait_for(lambda: not tiny.serving.jobs)
    assert page.inner_text(".question .content") == "hello"
    assert page.inner_text(ANSWER)
    assert page.inner_text(".facts").startswith("stopped")


def test_a_refusal_of_the_server_stands_where_the_answer_would(page: Page) -> None:
    settings(page, top_p="0")
    send(page, "hello")
    answered(page)
    error = page.inner_text(".answer .error")
    assert "Not accepted: top_p" in error
    page.click(".answer .error button:has-text('Settings')")
    page.fill("#settings [name=top_p]", "0.9")
    page.fill("#settings [name=max_completion_tokens]", "4")
    page.click("#settings [type=submit]")
    page.click(".answer .error button:has-text('Try again')")
    answered(page)
    assert page.locator(".answer").count() == 1
    assert page.locator(".answer .error").is_hidden()
    page.locator(".facts", has_text="4\u00a0tokens").wait_for()


def test_a_server_with_a_key_asks_for_it(chromium: Browser, serve: Any) -> None:
    with serve({"api_keys": ("secret",)}) as running, opened(chromium, f"{running.url}/") as page:
        for key in ("wrong", "secret"):
            page.wait_for_selector("#key[open]")
            page.fill("#key input", key)
            page.click("#key [type=submit]")
            page.wait_for_selector("#key[open]", state="hidden" if key == "secret" else "visible")
        until(page, "document.querySelector('#model').textContent === 'tiny'")
        settings(page, max_completion_tokens="3")
        send(page, "hello")
        answered(page)
        assert "3 tokens" in page.inner_text(".facts").replace("\u00a0", " ")
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


def test_no_server_is_said_too(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    send(page, "hello")
    answered(page)
    assert "does not answer" in page.inner_text(".answer .error")


# What is asked.


def test_settings_reach_the_request(page: Page) -> None:
    script = Script(page)
    script.text("yes")
    script.text("no")
    values = {"temperature": "0.25", "top_p": "0.5", "top_k": "7", "max_completion_tokens": "11", "seed": "-3"}
    settings(page, system="Be brief.", **values)
    send(page, "one")
    answered(page)
    body = script.bodies[0]
    assert {name: body[name] for name in values} == {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "max_completion_tokens": 11,
        "seed": -3,
    }
    assert body["model"] == "tiny"
    assert body["stream"] is True
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    # They outlive the page, and Reset clears them.
    page.reload()
    page.click("#open-settings")
    assert page.input_value("#settings [name=top_k]") == "7"
    page.click("#settings [data-reset]")
    page.click("#settings [type=submit]")
    send(page, "two")
    answered(page)
    again = script.bodies[1]
    assert not {"top_p", "top_k", "max_completion_tokens", "seed"}.intersection(again)
    assert [message["content"] for message in again["messages"]] == ["one", "yes", "two"]


def test_a_setting_that_makes_no_sense_is_not_sent(page: Page) -> None:
    script = Script(page)
    page.click("#open-settings")
    page.fill("#settings [name=temperature]", "-1")
    page.keyboard.press("Escape")
    send(page, "hello")
    page.wait_for_selector("#settings[open]")
    assert script.bodies == []
    page.keyboard.press("Escape")
    assert page.input_value("#question") == "hello"


def test_regenerate_and_edit_replace_the_last_turn(page: Page) -> None:
    script = Script(page)
    for text in ("first", "second", "third", "fourth"):
        script.text(text)
    send(page, "one")
    answered(page)
    send(page, "two")
    answered(page)
    page.click(".answer:last-child button:has-text('Regenerate')")
    answered(page)
    assert [message["content"] for message in script.bodies[2]["messages"]] == ["one", "first", "two"]
    assert page.locator(".answer .content").all_inner_texts() == ["first", "third"]
    page.click(".question button:has-text('Edit') >> visible=true")
    assert page.input_value("#question") == "two"
    send(page, "three")
    answered(page)
    assert [message["content"] for message in script.bodies[3]["messages"]] == ["one", "first", "three"]
    assert page.locator(".question .content").all_inner_texts() == ["one", "three"]
    assert page.locator(".answer .content").all_inner_texts() == ["first", "fourth"]


def test_a_question_without_an_answer_is_not_sent_again(page: Page) -> None:
    script = Script(page)
    script.refusal(429, "the queue is full", **{"retry-after": "7"})
    script.text("yes")
    send(page, "lost")
    answered(page)
    error = page.inner_text(".answer .error")
    assert "busy" in error
    assert "the queue is full" in error
    assert "Wait 7 s" in error
    send(page, "kept")
    answered(page)
    assert script.bodies[1]["messages"] == [{"role": "user", "content": "kept"}]


def test_an_answer_that_breaks_off_says_so_and_keeps_its_text(page: Page) -> None:
    Script(page).text("half an ans", ends=False)
    send(page, "hello")
    answered(page)
    assert page.inner_text(ANSWER) == "half an ans"
    assert "broke off" in page.inner_text(".answer .error")


def test_keys_of_the_question(page: Page) -> None:
    script = Script(page)
    script.text("ok")
    page.fill("#question", "a")
    low = page.locator("#question").bounding_box()["height"]
    page.press("#question", "Shift+Enter")
    page.keyboard.type("b")
    assert page.locator("#question").bounding_box()["height"] > low
    page.press("#question", "Enter")
    answered(page)
    assert script.bodies[0]["messages"] == [{"role": "user", "content": "a\nb"}]
    assert page.input_value("#question") == ""
    page.press("#question", "Enter")
    assert len(script.bodies) == 1


# What is shown.


def test_markup_of_a_model_is_inert(page: Page) -> None:
    evil = (
        '<img src="x" onerror="window.bad = 1"><script>window.bad = 1</script>\n\n'
        "[a](javascript:window.bad=1) ![b](http://example.invalid/pixel.png) [c](data:text/html,x) "
        "`<b>code</b>`\n\n```html\n<i onclick=x>\n```\n\n| <u>t</u> |\n|---|\n| <svg onload=x> |\n"
    )
    Script(page).text(*evil)
    send(page, '<img src="y" onerror="window.bad = 2">')
    answered(page)
    assert page.evaluate("window.bad") is None
    assert page.locator("#messages :is(img, script, b, i, u)").count() == 0
    assert page.locator(f"{ANSWER} svg[onload]").count() == 0
    assert '<img src="x" onerror="window.bad = 1">' in page.inner_text(ANSWER)
    assert page.inner_text(".question .content") == '<img src="y" onerror="window.bad = 2">'
    # An image is a link to it, and is not fetched: ``opened`` looks at what is asked for.
    links = page.eval_on_selector_all(f"{ANSWER} a", "all => all.map(a => [a.href, a.rel])")
    assert links == [["http://example.invalid/pixel.png", "noopener noreferrer"]]


def test_reloading_keeps_the_chat_and_a_new_one_leaves_it_in_the_list(page: Page) -> None:
    script = Script(page)
    script.text("**kept**")
    script.text("other")
    send(page, "remember me")
    answered(page)
    page.reload()
    assert page.inner_text(".question .content") == "remember me"
    assert page.inner_text(f"{ANSWER} strong") == "kept"
    page.click("#new")
    assert page.locator("#messages li").count() == 0
    send(page, "second chat")
    answered(page)
    page.click("#open-chats")
    assert page.locator("#chats .title").all_inner_texts() == ["second chat", "remember me"]
    page.click("#chats .chat:has-text('remember me')")
    assert page.inner_text(".question .content") == "remember me"
    page.click("#open-chats")
    page.click("#chats li:has-text('remember me') button[aria-label^=Delete]")
    assert page.locator("#chats .title").all_inner_texts() == ["second chat"]
    page.keyboard.press("Escape")
    assert page.locator("#messages li").count() == 0


def test_a_narrow_screen_scrolls_one_way_only(chromium: Browser, tiny: Running) -> None:
    with opened(chromium, f"{tiny.url}/", viewport={"width": 320, "height": 560}, has_touch=True) as page:
        wide = "x" * 300
        Script(page).text(f"{wide}\n\n```\n{wide}\n```\n\n| a | {wide} |\n|---|---|\n| {wide} | b |\n\n1. `{wide}`\n")
        overflow = """Math.max(...['html', '#column', 'footer'].map((selector) => {
          const box = document.querySelector(selector);
          return box.scrollWidth - box.clientWidth;
        }))"""
        assert page.evaluate(overflow) == 0
        send(page, wide)
        answered(page)
        assert page.evaluate(overflow) == 0
        assert page.evaluate("document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth")
        # What is too wide scrolls in its own box.
        for box in (".code pre", ".table"):
            assert page.eval_on_selector(box, "box => { box.scrollLeft = 50; return box.scrollLeft; }") == 50
        for dialog in ("chats", "settings"):
            page.click(f"#open-{dialog}")
            box = page.locator(f"#{dialog}").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 320
            page.keyboard.press("Escape")


def test_the_end_stays_in_sight_until_the_reader_scrolls_up(page: Page) -> None:
    script = Script(page)
    script.text(*(f"line {line}\n\n" for line in range(80)))
    script.text("more")
    send(page, "hello")
    answered(page)
    left = "(m => m.scrollHeight - m.clientHeight - m.scrollTop)(document.querySelector('main'))"
    until(page, f"{left} < 2")
    page.hover("main")
    page.mouse.wheel(0, -400)
    page.wait_for_selector("#jump", state="visible")
    # What comes now is not followed.
    page.evaluate("document.querySelector('.answer .content').append(document.createElement('hr'))")
    page.wait_for_timeout(100)
    assert page.evaluate(left) > 300
    page.click("#jump")
    until(page, f"{left} < 2")
    assert page.locator("#jump").is_hidden()


def test_every_control_has_a_name(page: Page) -> None:
    Script(page).text("```\ncode\n```")
    send(page, "hello")
    answered(page)
    nameless = (
        """all => all.filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
    )
    assert page.eval_on_selector_all("button, input, textarea", nameless) == []
    assert page.get_attribute("#messages", "role") == "log"
    assert page.get_attribute(".answer", "aria-busy") == "false"
    assert page.inner_text("#status") == "The answer is complete."
