"""The page's Markdown and its reader of events, module by module in a real browser."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser_rig import browser, opened
from serving_rig import Running

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The text, and the markup that a browser writes for the elements made of it (`_MARKUP`).
CASES = {
    "one": "<p>one</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# a\n### b #\n#no": '<h3 class="level-1">a</h3><h5 class="level-3">b</h5><p>#no</p>',
    "**a** *b* __c__ _d_ ~~e~~ ***f***": (
        "<p><strong>a</strong> <em>b</em> <strong>c</strong> <em>d</em> <del>e</del> <strong><em>f</em></strong></p>"
    ),
    "snake_case_name 2 * 3 * 4 ** x": "<p>snake_case_name 2 * 3 * 4 ** x</p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    r"\*a\* 1\. \x": r"<p>*a* 1. \x</p>",
    "`a*b*` ``c`d`` `open": "<p><code>a*b*</code> <code>c`d</code> `open</p>",
    "[a **b**](https://x.example/p_(q)) [c](nope)": (
        '<p><a href="https://x.example/p_(q)" target="_blank" rel="noopener noreferrer">a <strong>b</strong></a> '
        "[c](nope)</p>"
    ),
    "see https://x.example/a_b_c.": (
        '<p>see <a href="https://x.example/a_b_c" target="_blank" rel="noopener noreferrer">'
        "https://x.example/a_b_c</a>.</p>"
    ),
    "- a\n- b\n  - c\n\n  d\n- e": (
        "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul><p>d</p></li><li><p>e</p></li></ul>"
    ),
    "3. a\n4. b": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>',
    "text\n- a\n1. b": "<p>text</p><ul><li><p>a</p></li></ul><ol><li><p>b</p></li></ol>",
    "born in\n1986. yes": "<p>born in<br>1986. yes</p>",
    "1. a\n   ```py\n   x = 1\n     y\n   ```\n2. b": ("<ol><li><p>a</p>[py|x = 1\n  y]</li><li><p>b</p></li></ol>"),
    "```\n<b>\n\n# no\n```\nafter": "[text|<b>\n\n# no]<p>after</p>",
    "~~~~c\n```\n~~~~": "[c|```]",
    "```js\nopen": "[js|open]",
    "> a\n> > b\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "a\n\n---\n***\nb": "<p>a</p><hr><hr><p>b</p>",
    "| a | b |\n|:-:|--:|\n| 1 | x\\|y |\n| 2 |\n\nend": (
        '<table><thead><tr><th class="to-center">a</th><th class="to-right">b</th></tr></thead><tbody>'
        '<tr><td class="to-center">1</td><td class="to-right">x|y</td></tr>'
        '<tr><td class="to-center">2</td><td class="to-right"></td></tr></tbody></table><p>end</p>'
    ),
    "a | b\nc": "<p>a | b<br>c</p>",
    "": "",
}

# Shows an element's content, with code blocks and scrolling boxes in short.
_MARKUP = """async ([url, texts]) => {
  const { Markdown } = await import(url);
  const element = document.createElement("div");
  const markdown = new Markdown(element);
  for (const text of texts) markdown.show(text);
  for (const figure of element.querySelectorAll("figure")) {
    figure.replaceWith(`[${figure.querySelector("span").textContent}|${figure.querySelector("pre").textContent}]`);
  }
  for (const box of element.querySelectorAll(".table")) box.replaceWith(box.firstChild);
  return element.innerHTML;
}"""


@pytest.fixture(scope="module")
def page(tiny: Running) -> Iterator[Page]:
    with browser() as started, opened(started, f"{tiny.url}/") as page:
        yield page


def markup(page: Page, *texts: str) -> str:
    """Of the last text, after the others have been shown in the same place."""
    return page.evaluate(_MARKUP, ["/page/markdown.js", list(texts)])


@pytest.mark.parametrize("text", CASES, ids=repr)
def test_a_text_becomes(page: Page, text: str) -> None:
    expected = CASES[text].replace("[text|<b>", "[text|&lt;b&gt;")
    assert markup(page, text) == expected


def test_a_text_that_grows_ends_as_if_it_had_come_at_once(page: Page) -> None:
    whole = "\n\n".join(CASES)
    chance = random.Random(3)
    cuts = sorted(chance.sample(range(1, len(whole)), 60))
    assert markup(page, *(whole[:cut] for cut in cuts), whole) == markup(page, whole)


def test_a_block_that_is_done_keeps_its_element(page: Page) -> None:
    same = """async (url) => {
      const { Markdown } = await import(url);
      const element = document.createElement("div");
      const markdown = new Markdown(element);
      markdown.show("```\\na\\n```\\n\\nb");
      const [code, text] = element.children;
      markdown.show("```\\na\\n```\\n\\nb c");
      return [code === element.children[0], text === element.children[1], element.children.length];
    }"""
    assert page.evaluate(same, "/page/markdown.js") == [True, False, 2]


@pytest.mark.parametrize("piece", ["*a ", "**a", "_a ", "~~a ", "``a` ", "***a **b *c "])
def test_ends_that_are_missing_are_looked_for_once(page: Page, piece: str) -> None:
    """Steps of the search grow with the text, not with its square."""
    counted = """async ([url, text]) => {
      const { inline } = await import(url);
      const { indexOf } = String.prototype;
      let steps = 0;
      String.prototype.indexOf = function (...given) { steps++; return indexOf.apply(this, given); };
      try { inline(text); } finally { String.prototype.indexOf = indexOf; }
      return steps;
    }"""
    for times in (200, 800):
        assert 1 <= page.evaluate(counted, ["/page/inline.js", piece * times]) <= 30 * times


def test_events_are_whole_however_they_are_cut(page: Page) -> None:
    stream = 'data: {"a": "é🙂"}\n\ndata:no space\r\n\r\n: comment\n\nevent: x\ndata: two\ndata: lines\n\ndata: cut'
    read = """async ([url, text, size]) => {
      const { events } = await import(url);
      const bytes = new TextEncoder().encode(text);
      const body = new ReadableStream({
        start(out) {
          for (let at = 0; at < bytes.length; at += size) out.enqueue(bytes.slice(at, at + size));
          out.close();
        },
      });
      const found = [];
      for await (const data of events(body)) found.push(data);
      return found;
    }"""
    for size in (1, 2, 3, 7, 1000):
        assert page.evaluate(read, ["/page/sse.js", stream, size]) == ['{"a": "é🙂"}', "no space", "two\nlines"]
