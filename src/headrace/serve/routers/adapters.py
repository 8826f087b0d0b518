"""/v1/load_lora_adapter and /v1/unload_lora_adapter: adapters come and go while the server runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from headrace.core.errors import RequestError

from ..body import JsonRoute
from ..errors import ApiError
from ..protocol import LoadAdapterRequest, UnloadAdapterRequest
from ..serving import Serving, serving_of
from ..sse import encode

router = APIRouter(route_class=JsonRoute)

Server = Annotated[Serving, Depends(serving_of)]


@router.post("/v1/load_lora_adapter")
async def load_adapter(body: LoadAdapterRequest, serving: Server) -> Response:
    """Loads an adapter from a folder of the server's. Requests then name it as their model."""
    name = body.lora_name
    if name == serving.options.model_name:
        raise ApiError(400, f"{name!r} is the model itself; give the adapter another name", param="lora_name")
    try:
        await serving.engine.load_adapter(name, body.lora_path)
    except RequestError as error:
        param = "lora_path" if error.param == "lora_request" else error.param
        raise RequestError(str(error), param=param) from None
    serving.adapters[name] = serving.created
    return _answer(name, "loaded")


@router.post("/v1/unload_lora_adapter")
async def unload_adapter(body: UnloadAdapterRequest, serving: Server) -> Response:
    """No new request gets the adapter; those under way finish with it."""
    await serving.engine.unload_adapter(body.lora_name)
    serving.adapters.pop(body.lora_name, None)
    return _answer(body.lora_name, "unloaded")


def _answer(name: str, status: str) -> Response:
    return Response(encode({"lora_name": name, "status": status}), media_type="application/json")
