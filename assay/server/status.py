"""What a server says of itself: health, models, settings, load, metrics. The worker's side of a gateway's contract.

Nothing here waits behind inference, but for /health_generate, which is there to do just that. Shapes are those of vLLM,
SGLang, sglang-router and smg.
"""

import dataclasses
from typing import Any, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from assay import __version__
from assay.config import EngineConfig
from assay.dialects import tei
from assay.errors import InternalError, ModelNotFoundError, OverloadedError, QueueFullError, UnavailableError
from assay.sequence import TokenPrompt
from assay.server import kserve, tokens
from assay.server.body import json_response
from assay.server.endpoint import Endpoint
from assay.server.service import Served, Service


class Health(msgspec.Struct):
    status: str


class Version(msgspec.Struct):
    version: str


class ModelCard(msgspec.Struct, kw_only=True):
    """root: the folder or hub id that was loaded. max_model_len: null while the model loads."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "assay"
    root: str
    parent: None = None
    max_model_len: int | None
    permission: list[str] = []


class ModelList(msgspec.Struct):
    object: Literal["list"]
    data: list[ModelCard]


class ReadyCard(ModelCard, kw_only=True):
    """OpenAI's card, and what KServe's V1 says at the same path."""

    name: str
    ready: bool


class ModelInfo(msgspec.Struct, kw_only=True):
    model_path: str
    tokenizer_path: str
    served_model_name: str
    is_generation: bool = False
    weight_version: str = "default"
    model_type: str
    architectures: list[str]
    max_model_len: int
    id2label: dict[int, str]


class Load(msgspec.Struct):
    """Of all models: requests accepted and not answered, sequences that wait for the device, and their tokens."""

    num_reqs: int
    num_waiting_reqs: int
    num_tokens: int
    dp_rank: int = 0


class RankLoad(msgspec.Struct):
    """token_usage: the share of the queue that is full."""

    dp_rank: int
    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float


class Loads(msgspec.Struct):
    loads: list[RankLoad]


class ServerLoad(msgspec.Struct):
    server_load: int


# The settings in force, field by field as EngineConfig has them, and what gateways look for.
_SETTINGS = [(setting.name, setting.type) for setting in dataclasses.fields(EngineConfig)]
ServerInfo = msgspec.defstruct(
    "ServerInfo",
    [
        *_SETTINGS,
        ("model_path", str),
        ("served_model_name", str),
        ("dp_size", int),
        ("version", str),
        ("status", str),
        ("internal_states", list[Load]),
    ],
    module=__name__,
)


async def _health(service: Service, request: Request) -> Response:
    """200 while work is taken; 503 while loading, draining or dead. Reads one field."""
    return json_response(Health(service.status), 200 if service.status == "ok" else 503)


async def _health_generate(service: Service, request: Request) -> Response:
    """One real forward of one token, through queue and device: what fails is answered as any request's failure."""
    for served in service.models:
        await served.ready().classify([TokenPrompt([0])])
    return json_response(Health("ok"))


async def _version(service: Service, request: Request) -> Response:
    return json_response(Version(__version__))


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _models(service: Service, request: Request) -> Response:
    return json_response(ModelList("list", [ModelCard(**_card(service, served)) for served in service.models]))


async def _model(service: Service, request: Request) -> Response:
    """503 while it takes no work, as KServe's readiness has it."""
    served = service.serving(request.path_params["model"])
    card = ReadyCard(**_card(service, served), name=served.name, ready=served.available)
    return json_response(card, 200 if served.available else 503)


def _card(service: Service, served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "created": service.created,
        "root": served.config.model,
        "max_model_len": served.engine.max_model_len if served.engine else None,
    }


async def _model_info(service: Service, request: Request) -> Response:
    """Of the default model, or of the one that `?model=` names."""
    served = service.serving(request.query_params.get("model"))
    engine = served.ready()
    info = ModelInfo(
        model_path=served.config.model,
        tokenizer_path=served.config.model,
        served_model_name=served.name,
        model_type=engine.model.model_type,
        architectures=[engine.model.architecture],
        max_model_len=engine.max_model_len,
        id2label=dict(enumerate(engine.model.labels)),
    )
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
    info = ServerInfo(
        **dataclasses.asdict(service.default.config),
        model_path=service.default.config.model,
        served_model_name=service.default.name,
        dp_size=1,
        version=__version__,
        status=service.status,
        internal_states=[_load_of(service)],
    )
    return json_response(info)


async def _get_load(service: Service, request: Request) -> Response:
    return json_response([_load_of(service)])


async def _loads(service: Service, request: Request) -> Response:
    """As smg's load policies read it."""
    load = _load_of(service)
    usage = load.num_tokens / sum(served.config.max_queue_tokens for served in service.models)
    return json_response(Loads([RankLoad(0, load.num_reqs, load.num_waiting_reqs, usage)]))


async def _load(service: Service, request: Request) -> Response:
    return json_response(ServerLoad(_load_of(service).num_reqs))


def _load_of(service: Service) -> Load:
    loads = [engine.load_now() for engine in service.engines]
    return Load(*(sum(load[i] for load in loads) for i in range(3)))


_MODEL_QUERY = {"model": "the name of one of the models served; absent or empty is the default"}

# `/get_*` are older names of the same.
ENDPOINTS = (
    Endpoint(("/health", "/ready", "/ping"), _health, "Whether work is taken", Health, responses={503: Health}),
    Endpoint(
        ("/health_generate",),
        _health_generate,
        "One real forward pass",
        Health,
        refusals=(QueueFullError, OverloadedError, InternalError, UnavailableError),
    ),
    Endpoint(("/version",), _version, "The server's version", Version),
    Endpoint(("/metrics",), _metrics, "Metrics for Prometheus", CONTENT_TYPE_LATEST),
    Endpoint(("/v1/models",), _models, "The models served", ModelList),
    Endpoint(
        ("/v1/models/{model:path}",),
        _model,
        "One model, and whether it takes work (OpenAI, KServe V1)",
        ReadyCard,
        responses={503: ReadyCard},
        refusals=(ModelNotFoundError,),
    ),
    Endpoint(
        ("/model_info", "/get_model_info"),
        _model_info,
        "One model: its labels, length and architecture",
        ModelInfo,
        query=_MODEL_QUERY,
        refusals=(ModelNotFoundError, UnavailableError),
    ),
    Endpoint(
        ("/info",),
        _info,
        "The default model, as Text Embeddings Inference says it",
        tei.Info,
        refusals=(UnavailableError,),
        error=tei.PREDICT.error,
        render_error=tei.PREDICT.render_error,
        status=tei.PREDICT.status,
    ),
    Endpoint(("/server_info", "/get_server_info"), _server_info, "The settings in force", ServerInfo),
    Endpoint(("/get_load",), _get_load, "What waits, as sglang-router reads it", list[Load]),
    Endpoint(("/v1/loads",), _loads, "What waits, as smg reads it", Loads),
    Endpoint(("/load",), _load, "How many requests are not answered yet", ServerLoad),
    *kserve.ENDPOINTS,
    *tokens.ENDPOINTS,
)
