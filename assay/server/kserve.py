"""What KServe asks a server of itself: GET /v2 and below, health, readiness and metadata of a model.

The shapes are in dialects/kserve.py; V1's GET /v1/models/{model} is also OpenAI's, and stands in status.py.
"""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from assay import __version__
from assay.dialects import kserve
from assay.errors import ModelNotFoundError, UnavailableError
from assay.server.body import json_response
from assay.server.endpoint import Endpoint
from assay.server.service import Served, Service


async def _server(service: Service, request: Request) -> Response:
    return json_response(kserve.ServerMetadata("assay", __version__, []))


async def _live(service: Service, request: Request) -> Response:
    """False asks for a restart: only a dead engine needs one."""
    live = service.status != "dead"
    return json_response(kserve.Live(live), 200 if live else 503)


async def _ready(service: Service, request: Request) -> Response:
    ready = service.status == "ok"
    return json_response(kserve.Ready(ready), 200 if ready else 503)


async def _model(service: Service, request: Request) -> Response:
    served = _named(service, request)
    return json_response(kserve.model_metadata(served.name, len(served.ready().model.labels)))


async def _model_ready(service: Service, request: Request) -> Response:
    served = _named(service, request)
    return json_response(kserve.ModelReady(served.name, served.available), 200 if served.available else 503)


def _named(service: Service, request: Request) -> Served:
    kserve.check_version(request.path_params.get("version"))
    return service.serving(request.path_params["model"])


# Refusals as KServe's callers expect them.
_Endpoint = partial(
    Endpoint, error=kserve.INFER.error, render_error=kserve.INFER.render_error, status=kserve.INFER.status
)

# A model's name may hold slashes: the longer paths come first.
ENDPOINTS = (
    _Endpoint(("/v2", "/v2/"), _server, "The server's name and version (KServe V2)", kserve.ServerMetadata),
    _Endpoint(
        ("/v2/health/live",),
        _live,
        "Whether the server needs no restart (KServe V2)",
        kserve.Live,
        responses={503: kserve.Live},
    ),
    _Endpoint(
        ("/v2/health/ready",),
        _ready,
        "Whether every model takes work (KServe V2)",
        kserve.Ready,
        responses={503: kserve.Ready},
    ),
    _Endpoint(
        ("/v2/models/{model:path}/versions/{version}/ready", "/v2/models/{model:path}/ready"),
        _model_ready,
        "Whether a model takes work (KServe V2)",
        kserve.ModelReady,
        responses={503: kserve.ModelReady},
        refusals=(ModelNotFoundError,),
    ),
    _Endpoint(
        ("/v2/models/{model:path}/versions/{version}", "/v2/models/{model:path}"),
        _model,
        "A model's tensors (KServe V2)",
        kserve.ModelMetadata,
        refusals=(ModelNotFoundError, UnavailableError),
    ),
)
