"""The files of the page, without a browser: what is served, with which headers, and what must not stand in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from serving_rig import Running

from project import PACKAGE

PAGE = PACKAGE / "serve" / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
HTML = (PAGE / "index.html").read_text()


def test_the_page_is_served_with_its_policy(tiny: Running) -> None:
    page = tiny.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == HTML
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_every_file_that_is_named_is_served(tiny: Running) -> None:
    named = set(re.findall(r'(?:href|src)="(page/[\w.]+)"', HTML))
    named |= {f"page/{name}" for script in SCRIPTS for name in re.findall(r'from "\./([\w.]+)"', script.read_text())}
    assert named == {f"page/{path.name}" for path in PAGE.iterdir()} - {"page/index.html"}
    for path in named:
        answer = tiny.get(f"/{path}")
        assert answer.status_code == 200
        assert answer.content == (PAGE / Path(path).name).read_bytes()


def test_modules_come_as_javascript(tiny: Running) -> None:
    assert tiny.get("/page/main.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2Fapp.py", "/page/index.html", "/page/", "/page"])
def test_nothing_else_is(tiny: Running, path: str) -> None:
    assert tiny.get(path).status_code == 404


def test_a_key_guards_the_api_and_not_the_page(serve: Any) -> None:
    with serve({"api_keys": ("secret",)}) as running:
        assert running.get("/").status_code == 200
        assert running.get("/page/main.js").status_code == 200
        for path in ("/v1/models", "/page/none.js", "/page", "//", "/server_info"):
            assert running.get(path).status_code == 401, path
        assert running.post("/", {}).status_code == 405


def test_no_code_or_style_within_the_markup() -> None:
    assert not re.findall(r"\son\w+=|\sstyle=|<style|javascript:", HTML)
    assert re.findall(r"<script[^>]*>", HTML) == ['<script type="module" src="page/main.js">']
    assert "></script>" in HTML


def test_text_becomes_no_markup_in_any_script() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|eval\("
    found = {path.name: re.findall(ways, path.read_text()) for path in SCRIPTS}
    assert not {name: ways for name, ways in found.items() if ways}


def test_nothing_comes_from_elsewhere() -> None:
    namespace = "http://www.w3.org/2000/svg"
    for path in PAGE.iterdir():
        text = path.read_text().replace(namespace, "")
        assert not re.findall(r"""["'(]\s*(?:https?:)?//\w""", text), path.name


def test_scripts_stay_small() -> None:
    """As for Python: 300 lines are a lot for one idea."""
    assert not [path.name for path in PAGE.iterdir() if len(path.read_text().splitlines()) > 300]
    assert all(path.read_text().startswith("// ") for path in SCRIPTS)
