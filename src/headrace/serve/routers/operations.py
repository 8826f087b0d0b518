"""What an operator asks: health, version, configuration, statistics."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse

from headrace.core.sampling_params import SamplingParams

from ..answer import Whole
from ..engine import Prepared, Terms
from ..errors import ApiError
from ..job import Job
from ..serving import Serving, serving_of
from ..sse import encode

router = APIRouter()

Server = Annotated[Serving, Depends(serving_of)]

_PROBE = SamplingParams(max_tokens=1, end_id=-1, detokenize=False)
_PROBE_TIMEOUT = 30.0
_PROBE_TERMS = Terms(priority=1.0, timeout=_PROBE_TIMEOUT)


def _json(value: Any) -> Response:
    return Response(encode(value), media_type="application/json")


def _check(serving: Serving) -> None:
    if serving.draining:
        raise ApiError(503, "the server is shutting down", code="shutting_down")
    problem = serving.engine.problem()
    if problem is not None:
        raise ApiError(503, problem, code="engine_unavailable")


@router.get("/health", response_class=Response)
async def health(serving: Server) -> Response:
    """200 while requests can be served: the engine lives, and its loop turns when there is work."""
    _check(serving)
    return Response()


@router.get("/health_generate", response_class=Response)
async def health_generate(serving: Server) -> Response:
    """As /health, after one token has been generated."""
    _check(serving)

    async def probe() -> bytes:
        with Job(serving, [Prepared([0])], _PROBE, _PROBE_TERMS, name=None) as job:
            await job.finish()
            if not job.outputs[0].outputs[0].token_ids:
                raise ApiError(503, f"no token came within {_PROBE_TIMEOUT:.0f} s", code="engine_unavailable")
            return b"{}"

    return Whole(probe)


@router.get("/version")
async def show_version() -> Response:
    return _json({"version": version("headrace")})


@router.get("/v1/models")
async def models(serving: Server) -> Response:
    """The model that is served, and its adapters."""
    return _json({"object": "list", "data": [_card(serving, name) for name in (None, *serving.adapters)]})


@router.get("/v1/models/{name:path}")
async def model(name: str, serving: Server) -> Response:
    serving.check_model(name)
    return _json(_card(serving, name if name in serving.adapters else None))


def _card(serving: Serving, adapter: str | None) -> dict[str, Any]:
    card = {
        "id": adapter or serving.options.model_name,
        "object": "model",
        "created": serving.started if adapter is None else serving.adapters[adapter],
        "owned_by": "headrace",
        "max_model_len": serving.engine.max_seq_len,
    }
    return card if adapter is None else card | {"parent": serving.options.model_name}


@router.get("/server_info")
async def server_info(serving: Server) -> Response:
    """Every setting as it really is, and what the start took."""
    return _json({"model": serving.options.model_name, "version": version("headrace"), **serving.engine.describe()})


@router.get("/metrics")
async def metrics(serving: Server) -> Response:
    """Iteration statistics since the last call, as JSON; the last entry is a snapshot of now."""
    return _json(await serving.engine.stats())


@router.post("/kv_cache_events")
async def kv_cache_events(serving: Server) -> Response:
    """Blocks of the KV cache that have come, gone or moved since the last call, oldest first."""
    return _json(await serving.engine.kv_cache_events())


@router.get("/perf_metrics")
async def perf_metrics(serving: Server) -> Response:
    """Times and counts of each request that has finished since the last call, oldest first."""
    if serving.perf.capacity == 0:
        message = "no records are kept; start the server with --perf-metrics-max-requests above 0"
        raise ApiError(404, message, code="perf_metrics_off")
    return _json(serving.perf.drain())


@router.get("/prometheus/metrics", response_class=PlainTextResponse)
async def prometheus(serving: Server) -> Response:
    """Counters and histograms of finished requests."""
    return Response(serving.metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")
