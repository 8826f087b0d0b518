"""The server is what its OpenAPI document says: requests drawn from the schema, right and wrong, over real sockets."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_rig import Running

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
POSTS = (
    *("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    *("/v1/embeddings", "/v1/classify", "/v1/score", "/v1/rerank", "/pooling"),
)
GETS = (
    *("/health", "/health_generate", "/version", "/v1/models", "/v1/models/{name}", "/server_info", "/metrics"),
    *("/perf_metrics", "/prometheus/metrics"),
)
DRAINS = ("/kv_cache_events",)
"""Posts that take no body."""


def document(running: Running) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def ask(operation: schemathesis.schemas.APIOperation, mode: GenerationMode, times: int) -> int:
    """Draws requests, sends them, checks the answers. Returns how many."""
    asked = 0

    @settings(
        max_examples=times, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(checks=CHECKS, timeout=60)

    answers()
    return asked


def test_the_document_has_every_operation(tiny: Running) -> None:
    found = {(path, method) for path, method, _ in operations(tiny)}
    assert found == {(path, "POST") for path in (*POSTS, *DRAINS)} | {(path, "GET") for path in GETS}


def operations(running: Running) -> list[tuple[str, str, schemathesis.schemas.APIOperation]]:
    found = [result.ok() for result in document(running).get_all_operations()]
    return [(operation.path, operation.method.upper(), operation) for operation in found]


@pytest.mark.parametrize("path", [*GETS, *DRAINS])
def test_questions_of_an_operator(tiny: Running, path: str) -> None:
    operation = document(tiny)[path]["POST" if path in DRAINS else "GET"]
    assert ask(operation, GenerationMode.POSITIVE, 10) > 0
    tiny.idle()


@pytest.mark.parametrize("times", [pytest.param(50, id="some"), pytest.param(400, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_fit_the_schema_and_bodies_that_do_not(
    tiny: Running, path: str, mode: GenerationMode, times: int
) -> None:
    operation = document(tiny)[path]["POST"]
    assert ask(operation, mode, times) >= times / 2
    tiny.idle()
