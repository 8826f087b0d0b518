"""The official JSON-Schema-Test-Suite: no backend lets a model say what its schema forbids, with drafts or without.

The suite comes out of the source distribution of ``jsonschema``, which pip fetches once into ``build``; or set
HEADRACE_JSON_SCHEMA_SUITE to its folder ``tests``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guided_words import SUITE_CACHE, accepts, params, samplers, tiny_vocabulary
from test_backends import NEEDS_XGRAMMAR

from headrace.core.errors import RequestError
from headrace.guided import make_compiler

pytestmark = pytest.mark.slow

DRAFTS = ("draft2020-12", "draft7")
LEAST = {"llguidance": 150, "xgrammar": 30}
"""Schemas of each draft that must compile: to refuse everything proves nothing."""


@pytest.fixture(scope="session")
def suite() -> Path:
    named = os.environ.get("HEADRACE_JSON_SCHEMA_SUITE")
    if named:
        return Path(named)
    SUITE_CACHE.mkdir(parents=True, exist_ok=True)
    if not list(SUITE_CACHE.glob("jsonschema-*.tar.gz")):
        command = ["pip", "download", "--no-deps", "--no-binary", "jsonschema", "jsonschema==4.26.0"]
        got = subprocess.run(
            [sys.executable, "-m", *command, "-d", str(SUITE_CACHE)], capture_output=True, text=True, timeout=300
        )
        if got.returncode:
            pytest.skip(f"pip cannot fetch the source of jsonschema: {got.stderr.strip()[-300:]}")
    (archive,) = SUITE_CACHE.glob("jsonschema-*.tar.gz")
    folder = archive.with_name(archive.name.removesuffix(".tar.gz"))
    if not folder.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(SUITE_CACHE, filter="data")
    return folder / "json" / "tests"


def groups(suite: Path, draft: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((suite / draft).glob("*.json")):
        for group in json.loads(file.read_text()):
            yield f"{file.relative_to(suite)}: {group['description']}", group


def spellings(data: Any) -> set[str]:
    """The ways in which a model may write a value."""
    texts = {
        json.dumps(data),
        json.dumps(data, ensure_ascii=False),
        json.dumps(data, separators=(",", ":")),
        json.dumps(data, indent=2),
    }
    if isinstance(data, dict):
        texts |= {json.dumps(dict(sorted(data.items()))), json.dumps(dict(reversed(data.items())))}
    return texts


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("backend", ["llguidance", pytest.param("xgrammar", marks=NEEDS_XGRAMMAR)])
def test_nothing_invalid_is_accepted(backend: str, draft: str, suite: Path) -> None:
    vocabulary = tiny_vocabulary()
    compiler = make_compiler(backend, vocabulary)
    sampler = samplers(len(vocabulary.tokens))[-1]
    found: Counter[str] = Counter()
    wrong = []
    for name, group in groups(suite, draft):
        try:
            grammar = compiler.compile(params(json=group["schema"]))
        except RequestError:
            found["refused"] += 1
            continue
        found["compiled"] += 1
        for test in group["tests"]:
            texts = spellings(test["data"])
            accepted = [text for text in texts if accepts(sampler, grammar, vocabulary, text)]
            drafted = [text for text in texts if accepts(sampler, grammar, vocabulary, text, n_drafts=4)]
            assert sorted(accepted) == sorted(drafted), f"{name}: drafts change what is accepted"
            if test["valid"]:
                found["valid, accepted" if accepted else "valid, not accepted"] += 1
            else:
                found["invalid"] += 1
                wrong += [f"{name}: {test['description']}: {text}" for text in accepted]
    print(backend, draft, dict(found))
    assert not wrong, "\n".join(wrong)
    assert found["compiled"] >= LEAST[backend]
    assert found["valid, accepted"] > found["valid, not accepted"]
