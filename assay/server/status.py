"""What a server says of itself: health, models, settings, load, metrics. The worker's side of a gateway's contract.

Nothing here waits behind inference, but for /health_generate, which is there to do just that. Shapes are those of vLLM,
SGLang, sglang-router and smg.
"""

import dataclasses
from functools import partial
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from assay import __version__
from assay.dialects import tei
from assay.sequence import TokenPrompt
from assay.server.service import Service


def status_routes(service: Service) -> list[Route]:
    """Every route that is no dialect. `/get_*` are older names of the same."""
    handlers = {
        "/health": _health,
        "/ready": _health,
        "/ping": _health,
        "/health_generate": _health_generate,
        "/version": _version,
        "/metrics": _metrics,
        "/v1/models": _models,
        "/model_info": _model_info,
        "/get_model_info": _model_info,
        "/info": _info,
        "/server_info": _server_info,
        "/get_server_info": _server_info,
        "/get_load": _get_load,
        "/v1/loads": _loads,
        "/load": _load,
    }
    return [Route(path, partial(handler, service)) for path, handler in handlers.items()]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Anything that msgspec can encode, as application/json."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def _health(service: Service, request: Request) -> Response:
    """200 while work is taken; 503 while loading, draining or dead. Reads one field."""
    return json_response({"status": service.status}, 200 if service.status == "ok" else 503)


async def _health_generate(service: Service, request: Request) -> Response:
    """One real forward of one token, through queue and device: what fails is answered as any request's failure."""
    for served in service.models:
        await served.ready().classify([TokenPrompt([0])])
    return json_response({"status": "ok"})


async def _version(service: Service, request: Request) -> Response:
    return json_response({"version": __version__})


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _models(service: Service, request: Request) -> Response:
    cards: list[dict[str, Any]] = [
        {
            "id": served.name,
            "object": "model",
            "created": service.created,
            "owned_by": "assay",
            "root": served.config.model,
            "parent": None,
            "max_model_len": served.engine.max_model_len if served.engine else None,
            "permission": [],
        }
        for served in service.models
    ]
    return json_response({"object": "list", "data": cards})


async def _model_info(service: Service, request: Request) -> Response:
    """Of the default model, or of the one that `?model=` names."""
    served = service.serving(request.query_params.get("model"))
    engine = served.ready()
    info = {
        "model_path": served.config.model,
        "tokenizer_path": served.config.model,
        "served_model_name": served.name,
        "is_generation": False,
        "weight_version": "default",
        "model_type": engine.model.model_type,
        "architectures": [engine.model.architecture],
        "max_model_len": engine.max_model_len,
        "id2label": dict(enumerate(engine.model.labels)),
    }
    return json_response(info)


async def _info(service: Service, request: Request) -> Response:
    """As TEI's clients read it."""
    request.scope["dialect"] = tei.PREDICT  # so that a refusal has TEI's shape
    served = service.default
    engine, config = served.ready(), served.config
    info = tei.Info(
        model_id=served.name,
        model_sha=config.revision,
        model_dtype=str(engine.model.dtype).removeprefix("torch."),
        model_type=tei.model_type(engine.model.labels),
        max_concurrent_requests=config.max_queue_tokens,  # a request has at least one token
        max_input_length=engine.max_model_len,
        max_batch_tokens=config.max_batch_tokens,
        max_client_batch_size=service.config.max_request_inputs,
        tokenization_workers=config.tokenizer_threads,
    )
    return json_response(info)


async def _server_info(service: Service, request: Request) -> Response:
    """The settings in force, and what gateways look for."""
    info = {
        "model_path": service.default.config.model,
        "served_model_name": service.default.name,
        "dp_size": 1,
        "version": __version__,
        "status": service.status,
        "internal_states": [_load_of(service)],
    }
    return json_response(dataclasses.asdict(service.default.config) | info)


async def _get_load(service: Service, request: Request) -> Response:
    return json_response([_load_of(service)])


async def _loads(service: Service, request: Request) -> Response:
    """As smg's load policies read it. `token_usage` is the share of the queue that is full."""
    load = _load_of(service)
    entry = {
        "dp_rank": 0,
        "num_running_reqs": load["num_reqs"],
        "num_waiting_reqs": load["num_waiting_reqs"],
        "token_usage": load["num_tokens"] / sum(served.config.max_queue_tokens for served in service.models),
    }
    return json_response({"loads": [entry]})


async def _load(service: Service, request: Request) -> Response:
    return json_response({"server_load": _load_of(service)["num_reqs"]})


def _load_of(service: Service) -> dict[str, int]:
    """Of all models: requests accepted and not answered, sequences that wait for the device, and their tokens."""
    loads = [engine.load_now() for engine in service.engines]
    names = ("num_reqs", "num_waiting_reqs", "num_tokens")
    return {name: sum(load[i] for load in loads) for i, name in enumerate(names)} | {"dp_rank": 0}
